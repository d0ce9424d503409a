"""Judging a trained network: results per sample, and every figure as a function of them."""

from train.assess.evaluation import Evaluation, summarize
from train.assess.samples import Samples, collect

__all__ = ["Evaluation", "Samples", "collect", "summarize"]
