"""Commands beside training: flags and printing, a module each; `train.program` knows them by name."""
