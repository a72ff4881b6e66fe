"""Rules: how snapshots are scored and ordered. One a file; ``base`` says what a rule of your own implements."""

from lightning_ckptkd.selecting.rules.base import (
    AUTO,
    DEFAULT_NUMBER,
    JointScorer,
    Needs,
    PositionRule,
    Racer,
    Ranked,
    Rule,
    Scorer,
    ScoringRule,
)
from lightning_ckptkd.selecting.rules.held_out import Accuracy, Loss
from lightning_ckptkd.selecting.rules.mcmi import MCMI
from lightning_ckptkd.selecting.rules.mean import MeanRule, RowRule
from lightning_ckptkd.selecting.rules.mi import MI
from lightning_ckptkd.selecting.rules.position import Full, Half, Spaced
from lightning_ckptkd.selecting.rules.registry import (
    RULES,
    make_rule,
    moved_options,
    names_of_rules,
    no_such_option,
    where_it_went,
)
from lightning_ckptkd.selecting.rules.words import Column, HeldOut, Words

__all__ = [
    "AUTO",
    "DEFAULT_NUMBER",
    "MCMI",
    "MI",
    "RULES",
    "Accuracy",
    "Column",
    "Full",
    "Half",
    "HeldOut",
    "JointScorer",
    "Loss",
    "MeanRule",
    "Needs",
    "PositionRule",
    "Racer",
    "Ranked",
    "RowRule",
    "Rule",
    "Scorer",
    "ScoringRule",
    "Spaced",
    "Words",
    "make_rule",
    "moved_options",
    "names_of_rules",
    "no_such_option",
    "where_it_went",
]
