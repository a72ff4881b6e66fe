from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.tasks.outputs import get_output

LOGITS = torch.randn(4, 3)
OTHER = torch.randn(4, 5)


@pytest.mark.parametrize(
    ("output", "key"),
    [
        (LOGITS, None),
        (LOGITS, 0),  # a tuple in training, a tensor in evaluation
        ((OTHER, LOGITS), 1),
        ((OTHER, LOGITS), -1),
        ({"scores": LOGITS, "features": OTHER}, "scores"),
        ({"logits": LOGITS, "loss": OTHER}, None),
        ({"out": LOGITS, "aux": OTHER}, None),
        (SimpleNamespace(logits=LOGITS, aux_logits=OTHER), None),
        (SimpleNamespace(scores=LOGITS), "scores"),
    ],
)
def test_where_they_are(output: Any, key: str | int | None) -> None:
    assert get_output(output, key, "Net") is LOGITS


@pytest.mark.parametrize(
    ("output", "key", "message"),
    [
        ((OTHER, LOGITS), None, r"Net returns tuple of 2 .*with student_logits_key"),
        ({"scores": LOGITS}, None, "Net returns a mapping with 'scores'"),
        ({"scores": LOGITS}, "score", "student_logits_key='score'"),
        ((OTHER,), 3, "student_logits_key=3"),
        ([{"boxes": OTHER}], None, "Net returns list of 1"),
        ({"logits": (LOGITS, OTHER)}, "logits", "not a tensor of logits"),
    ],
)
def test_where_they_are_not(output: Any, key: str | int | None, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        get_output(output, key, "Net", "student_logits_key")
