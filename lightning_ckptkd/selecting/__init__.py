"""From a harvest to a choice: a list of snapshots in, a list of chosen ones out."""

from lightning_ckptkd.selecting.items import Harvested, read_items
from lightning_ckptkd.selecting.looking import check_model
from lightning_ckptkd.selecting.record import make_selection
from lightning_ckptkd.selecting.score_files import ScoreFiles
from lightning_ckptkd.selecting.select import Outcome, Trial, select_by_position, select_by_score
from lightning_ckptkd.selecting.settings import SelectionSettings
from lightning_ckptkd.selecting.soup import Soup
from lightning_ckptkd.selecting.student_proxy import StudentProxy
from lightning_ckptkd.selecting.training_data import TrainingData

__all__ = [
    "Harvested",
    "Outcome",
    "ScoreFiles",
    "SelectionSettings",
    "Soup",
    "StudentProxy",
    "TrainingData",
    "Trial",
    "check_model",
    "make_selection",
    "read_items",
    "select_by_position",
    "select_by_score",
]
