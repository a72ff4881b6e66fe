"""Harvest the checkpoints of a Lightning run, select teachers among them by mutual information, distil a student.

Weights flow one way: :class:`CheckpointHarvester` writes snapshots into a folder while a model trains,
:class:`MISelector` writes a choice into the same folder when fitting ends, :class:`DistillationModule` trains a
student on the chosen ones. The folder is all that they share.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

# A name's module is imported when the name is first asked for (PEP 562): a command that trains nothing needs no
# Trainer, and importing Lightning takes longer than it runs.
_MODULES = {
    "commands.export": ("export_network", "export_student"),
    "commands.exporting.card": ("write_model_card",),
    "distillation": ("DistillationModule",),
    "errors": ("ArgumentError", "CacheError", "CkptKDError", "SelectionError", "SnapshotError", "TeacherError"),
    "harvester": ("CheckpointHarvester",),
    "selecting": ("Soup", "StudentProxy"),
    "selector": ("MISelector",),
    "snapshots": ("SnapshotStore", "harvest_checkpoints"),
    "teachers": ("CutMix", "Mixup", "TeacherCache"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
_ROOMS = ("commands", "information", "losses", "selecting", "tasks", "teachers", "trainer", "zoo", *_MODULES)


def __getattr__(name: str) -> Any:
    """A public name from where it is defined, or a room."""
    if name in _MODULE_OF:
        value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
