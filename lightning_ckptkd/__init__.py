"""Harvest the checkpoints of a Lightning run, select teachers among them by mutual information, distil a student.

Weights flow one way: :class:`CheckpointHarvester` writes snapshots into a folder while a model trains,
:class:`MISelector` writes a choice into the same folder when fitting ends, :class:`DistillationModule` trains a
student on the chosen ones. The folder is all that they share.
"""

from importlib.metadata import version

from lightning_ckptkd.commands.export import export_network, export_student
from lightning_ckptkd.commands.exporting.card import write_model_card
from lightning_ckptkd.distillation import DistillationModule
from lightning_ckptkd.errors import (
    ArgumentError,
    CacheError,
    CkptKDError,
    SelectionError,
    SnapshotError,
    TeacherError,
)
from lightning_ckptkd.harvester import CheckpointHarvester
from lightning_ckptkd.selecting import Soup, StudentProxy
from lightning_ckptkd.selector import MISelector
from lightning_ckptkd.snapshots import SnapshotStore, harvest_checkpoints
from lightning_ckptkd.teachers import CutMix, Mixup, TeacherCache

__version__ = version("lightning-ckptkd")

__all__ = [
    "ArgumentError",
    "CacheError",
    "CheckpointHarvester",
    "CkptKDError",
    "CutMix",
    "DistillationModule",
    "MISelector",
    "Mixup",
    "SelectionError",
    "SnapshotError",
    "SnapshotStore",
    "Soup",
    "StudentProxy",
    "TeacherCache",
    "TeacherError",
    "export_network",
    "export_student",
    "harvest_checkpoints",
    "write_model_card",
]
