from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_ckptkd import ArgumentError, MISelector, SnapshotStore
from lightning_ckptkd.selecting.rules import MI
from lightning_ckptkd.tasks.batch import Batch


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_estimator": "gausian"}, "input_estimator='gausian' is unknown. Near names: 'gaussian'"),
        ({"label_estimator": "x"}, "label_estimator='x' is unknown"),
        ({"normalisation": "sum"}, "normalisation='sum' is unknown"),
        ({"input_weight": -1.0}, "input_weight and label_weight should be 0 or more"),
        ({"input_weight": 0.0, "label_weight": 0.0}, "not both 0"),
        ({"decoder_steps": 0}, "decoder_steps should be 1 or more"),
        ({"feature": "logit"}, "feature='logit' is unknown. Near names: 'logits'"),
        ({"likelihood": "mse"}, "likelihood='mse' is unknown"),
        ({"temperature": 0.0}, "temperature should be above 0, got 0.0"),
        ({"label_floor": 1.5}, r"label_floor should be in \[0, 1\], got 1.5"),
        (
            {"given_label": True, "input_estimator": "convolutional"},
            "given_label=True is for input_estimator='gaussian', got 'convolutional'",
        ),
        (
            {"normalisation": "entropy", "input_estimator": "convolutional", "likelihood": "gaussian"},
            "normalisation='entropy' needs an entropy of the input, which likelihood='gaussian' does not give",
        ),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        MI(**options)


def test_no_score_depends_on_how_it_is_weighed() -> None:
    weighed = MI(input_weight=0.5, label_weight=2.0, normalisation="max", label_floor=0.1)
    assert weighed.key() == MI().key()
    for option in ({"given_label": True}, {"layer": "x"}, {"feature": "logits"}, {"decoder_steps": 1}):
        assert MI(**option).key() != MI().key()


class Named(nn.Module):
    """A network of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.head((self.first(left) + self.second(right)).relu())


def test_inputs_that_are_not_one_tensor(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with SnapshotStore.create(tmp_path, "run", {}) as store:
        for epoch in range(2):
            store.commit(Named().state_dict(), epoch=epoch, global_step=epoch + 1)
    labels = torch.arange(60) % 3
    loader = [{"left": torch.randn(60, 4), "right": torch.randn(60, 4), "label": labels}]
    for candidate in MISelector().select(tmp_path, Named(), loader, progress=False).candidates:
        assert candidate.input_information is not None and candidate.input_term is not None
    selection = MISelector(rule=MI(input_weight=0)).select(tmp_path, Named(), loader, progress=False)
    for candidate in selection.candidates:
        assert candidate.label_information is not None and candidate.score == candidate.label_term
    assert MISelector(rule="loss").select(tmp_path, Named(), loader, progress=False).chosen


class Ragged(Named):
    """Reads the mean of sequences."""

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return super().forward(left.mean(1), right)


def test_inputs_that_are_no_vectors_are_left_out_in_one_line(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with SnapshotStore.create(tmp_path, "run", {}) as store:
        for epoch in range(2):
            store.commit(Ragged().state_dict(), epoch=epoch, global_step=epoch + 1)
    loader = [
        {"left": torch.randn(30, length, 4), "right": torch.randn(30, 4), "label": torch.arange(30) % 3}
        for length in (3, 5)
    ]
    told = (
        r"I\(X;F\) is left out, since samples of 'left' have several shapes, such as .*input_view=.* or input_weight=0"
    )
    with pytest.warns(UserWarning, match=told):
        selection = MISelector().select(tmp_path, Ragged(), loader, progress=False)
    for candidate in selection.candidates:
        assert candidate.input_information is None and candidate.input_term is None
        assert candidate.label_information is not None and candidate.score == candidate.label_term
    with pytest.raises(ArgumentError, match=r"label_weight=0, and I\(X;F\) is left out"):
        MISelector(rule=MI(label_weight=0)).select(tmp_path, Ragged(), loader, progress=False)
    with (
        pytest.raises(
            ArgumentError, match=r"ensemble='greedy' \(or num_teachers='auto'\) needs I.*or leave that option out"
        ),
        pytest.warns(UserWarning, match=told),
    ):
        MISelector(ensemble="greedy").select(tmp_path, Ragged(), loader, progress=False)
    rule = MI(input_view=mean_of_left)
    viewed = MISelector(rule=rule).select(tmp_path, Ragged(), loader, progress=False)
    assert all(candidate.input_information is not None for candidate in viewed.candidates)
    assert viewed.settings["rule"]["input_view"] == f"{__name__}.mean_of_left"
    assert rule.key() != MI().key() and rule.key() != MI(input_view=two_of_left).key()


def mean_of_left(batch: Batch) -> torch.Tensor:
    return batch.inputs["left"].mean(1)


def two_of_left(batch: Batch) -> torch.Tensor:
    return batch.inputs["left"][:, :2].mean(1)
