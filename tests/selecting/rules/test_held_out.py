from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_ckptkd import MISelector, SnapshotStore
from lightning_ckptkd.selecting.features import extract_features
from lightning_ckptkd.selecting.layers import Layers
from lightning_ckptkd.selecting.probe import Probe
from lightning_ckptkd.selecting.rows import ProbeRows
from lightning_ckptkd.selecting.rules import Loss
from lightning_ckptkd.tasks import Regression
from lightning_ckptkd.tasks.batch import Batch
from tests.projects import Project, digits


def test_loss_is_the_label_entropy_less_the_cross_entropy(harvest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loader = DataLoader(digits(1000, 1200), 64)
    selection = MISelector(rule="loss", num_teachers=1).select(harvest, Project(), loader, progress=False)
    store, (images, labels) = SnapshotStore.open(harvest), digits(1000, 1200).tensors
    shares = np.bincount(labels.numpy()) / len(labels)
    for snapshot, candidate in zip(store.snapshots, selection.candidates, strict=True):
        project = Project().eval()
        project.load_state_dict(store.load(snapshot))
        logits = project(images).detach().numpy().astype(np.float64)
        costs = np.log(np.exp(logits).sum(1)) - logits[np.arange(200), labels.numpy()]
        assert candidate.score == pytest.approx(-(shares * np.log(shares)).sum() - costs.mean(), rel=1e-5)
        assert candidate.score_error == pytest.approx(costs.std() / 200**0.5, rel=0.6)
        assert candidate.label_information is None and candidate.accuracy is not None
    best = max(selection.candidates, key=lambda candidate: candidate.score or 0.0)
    assert selection.chosen == (best.file,)
    table = capsys.readouterr().out
    assert "H(Y) - CE nats" in table and "I(X;F)" not in table


def test_the_loss_of_numbers_is_the_squared_error_below_zero() -> None:
    images, targets = torch.randn(40, 3), torch.randn(40, 2)
    rows = ProbeRows.of(Probe((Batch(images, targets),)), Regression(), 2, 16, 0)
    network = nn.Linear(3, 2).eval()
    features = extract_features(network, rows, Layers(None, False, None))
    squares = ((network(images) - targets).detach().double().numpy() ** 2).sum(1)
    assert Loss().measure(features, rows).value == pytest.approx(-squares.mean(), rel=1e-6)


def test_over_confidence_counts_and_for_the_fitted_head_it_does_not(harvest: Path) -> None:
    """The same network with logits ten times as large says the same things, too loudly."""
    store = SnapshotStore.open(harvest)
    store = SnapshotStore.create(harvest, store.manifest.run_id, {})
    weights = store.load(store.snapshots[-1])
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name] * 10
    store.commit(weights, epoch=4, global_step=store.snapshots[-1].global_step + 1)
    store.close()
    loader = DataLoader(digits(1000, 1200), 64)
    loss = MISelector(rule="loss").select(harvest, Project(), loader, progress=False).candidates
    fitted = MISelector().select(harvest, Project(), loader, progress=False).candidates
    assert (loss[4].score or 0) < (loss[3].score or 0) - 0.2
    assert fitted[4].label_information == pytest.approx(fitted[3].label_information, abs=0.05)
    assert loss[4].accuracy == loss[3].accuracy
