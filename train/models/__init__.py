"""Our own networks, registered with timm: importing this package makes `timm.create_model` know them."""

from train.models.airbench import Airbench, airbench94
from train.models.cifar import CifarResNet, cifar_resnet9

OWN = ("airbench94", "cifar_resnet9")  # names that timm knows only once this is imported

__all__ = ["OWN", "Airbench", "CifarResNet", "airbench94", "cifar_resnet9"]
