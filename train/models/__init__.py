"""Our own networks, registered with timm: importing this package makes `timm.create_model` know them."""

from train.models.airbench import Airbench, airbench94
from train.models.cifar import CifarResNet, cifar_resnet9

__all__ = ["Airbench", "CifarResNet", "airbench94", "cifar_resnet9"]
