"""Distillation losses, one a file: a pure function and a thin module each."""

from lightning_ckptkd.losses.base import LogitLoss
from lightning_ckptkd.losses.combine import combine_logits
from lightning_ckptkd.losses.dist import DISTLoss, dist_loss
from lightning_ckptkd.losses.dkd import DKDLoss, dkd_loss
from lightning_ckptkd.losses.feature import FeatureLoss, feature_loss
from lightning_ckptkd.losses.kd import KDLoss, kd_loss
from lightning_ckptkd.losses.mse import MSELoss, mse_loss

__all__ = [
    "DISTLoss",
    "DKDLoss",
    "FeatureLoss",
    "KDLoss",
    "LogitLoss",
    "MSELoss",
    "combine_logits",
    "dist_loss",
    "dkd_loss",
    "feature_loss",
    "kd_loss",
    "mse_loss",
]
