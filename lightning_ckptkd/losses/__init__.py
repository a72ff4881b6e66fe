"""Distillation losses, one a file: a pure function and a thin module each."""

from lightning_ckptkd.losses.kd import KDLoss, kd_loss

__all__ = ["KDLoss", "kd_loss"]
