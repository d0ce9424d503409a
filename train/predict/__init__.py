"""Predictions for images that are in no dataset, of the pixels that they would have in one."""

from train.predict.images import Bad, Given, load_image
from train.predict.names import find_images
from train.predict.pixels import Pixels
from train.predict.predictor import Prediction, Predictor, predict

__all__ = ["Bad", "Given", "Pixels", "Prediction", "Predictor", "find_images", "load_image", "predict"]
