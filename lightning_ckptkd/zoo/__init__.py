"""The networks, the classifier and the data modules that configs/ name; nothing else in the package imports them."""

from lightning_ckptkd.zoo.cifar100 import CIFAR100DataModule
from lightning_ckptkd.zoo.classifier import Classifier
from lightning_ckptkd.zoo.digits import DigitsDataModule
from lightning_ckptkd.zoo.fashion_mnist import FashionMNISTDataModule
from lightning_ckptkd.zoo.image_folder import ImageFolderDataModule
from lightning_ckptkd.zoo.mlp import MLP
from lightning_ckptkd.zoo.mobilenet import small_image_mobilenet_v2
from lightning_ckptkd.zoo.resnet import CIFARResNet
from lightning_ckptkd.zoo.wide_resnet import WideResNet

__all__ = [
    "MLP",
    "CIFAR100DataModule",
    "CIFARResNet",
    "Classifier",
    "DigitsDataModule",
    "FashionMNISTDataModule",
    "ImageFolderDataModule",
    "WideResNet",
    "small_image_mobilenet_v2",
]
