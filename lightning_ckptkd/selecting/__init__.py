"""From a harvest to a choice: settings, one snapshot's score, the choice among all."""

from lightning_ckptkd.selecting.proxy_scorer import TrainingData
from lightning_ckptkd.selecting.select import select_snapshots
from lightning_ckptkd.selecting.settings import SelectionSettings
from lightning_ckptkd.selecting.snapshot_scorer import check_model
from lightning_ckptkd.selecting.student_proxy import StudentProxy

__all__ = ["SelectionSettings", "StudentProxy", "TrainingData", "check_model", "select_snapshots"]
