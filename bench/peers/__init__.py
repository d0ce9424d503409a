"""The same work done by others; one adapter each, a `bench.measure.Stage` that yields normalised float batches."""
