"""What a batch, an output and a target are: the one place that says it, which every other room asks."""

from lightning_ckptkd.tasks.base import Task
from lightning_ckptkd.tasks.binary import Binary
from lightning_ckptkd.tasks.causal_lm import CausalLM
from lightning_ckptkd.tasks.dense import Dense, Tokens
from lightning_ckptkd.tasks.multiclass import Multiclass
from lightning_ckptkd.tasks.multilabel import Multilabel
from lightning_ckptkd.tasks.regression import Regression
from lightning_ckptkd.tasks.rows import Labelled, Rows
from lightning_ckptkd.tasks.soft import SoftMulticlass

__all__ = [
    "Binary",
    "CausalLM",
    "Dense",
    "Labelled",
    "Multiclass",
    "Multilabel",
    "Regression",
    "Rows",
    "SoftMulticlass",
    "Task",
    "Tokens",
]
