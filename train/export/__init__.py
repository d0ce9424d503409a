"""A run's network as a file for those who have no feedline: see `train.export.formats`."""

from train.export.deploy import Exported, export
from train.export.formats import FORMATS

__all__ = ["FORMATS", "Exported", "export"]
