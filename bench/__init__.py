"""Measure every stage of the way from disk to weights, as ratios within one run."""
