"""Commands beside training: flags and printing, a module each; `train.__main__` knows them by name."""
