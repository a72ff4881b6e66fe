from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_ckptkd import ArgumentError, MISelector, SnapshotStore
from lightning_ckptkd.selecting.rules import MI


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
    with pytest.raises(ArgumentError, match=r"a mapping with 'left'.* Leave it out with rule=MI\(input_weight=0\)"):
        MISelector().select(tmp_path, Named(), loader, progress=False)
    selection = MISelector(rule=MI(input_weight=0)).select(tmp_path, Named(), loader, progress=False)
    for candidate in selection.candidates:
        assert candidate.input_information is None and candidate.input_term is None
        assert candidate.label_information is not None and candidate.score == candidate.label_term
    assert MISelector(rule="loss").select(tmp_path, Named(), loader, progress=False).chosen
