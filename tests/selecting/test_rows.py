from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_ckptkd import ArgumentError, MISelector
from lightning_ckptkd.information.label import head_gains
from lightning_ckptkd.selecting.features import extract_features
from lightning_ckptkd.selecting.layers import Layers
from lightning_ckptkd.selecting.looking import tell_of_missing_classes
from lightning_ckptkd.selecting.probe import Probe
from lightning_ckptkd.selecting.rows import MOST_ROWS, ProbeRows, draw_rows
from lightning_ckptkd.selecting.rules import MI
from lightning_ckptkd.tasks import CausalLM, Task, Tokens
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.tasks.multiclass import Multiclass
from tests.projects import Project, digits
from tests.selecting.pixels import IGNORED, Pixels, Segmenter, masks, write_harvest

LOGITS = Layers(None, False, None)


def of_pixels(side: int, batch_size: int = 16, count: int = 60) -> ProbeRows:
    return ProbeRows.of(Probe((Batch(*masks(0, count, side)),)), Pixels(), 2, batch_size, 0)


def test_plain_samples_are_one_row_each() -> None:
    images, labels = digits(0, 60).tensors
    rows = ProbeRows.of(Probe((Batch(images, labels[:, None]),)), Multiclass(), 10, 16, 0)
    assert rows.samples is None and torch.equal(rows.targets, labels)
    assert [len(part.batch) for part in rows.parts] == [16, 16, 16, 12]
    assert rows.counts.tolist() == [1] * 60
    values = torch.randn(60, dtype=torch.float64)
    assert rows.term(values) == rows.sample_term(values)
    assert rows.term(values).value == float(values.mean())


def test_samples_without_a_label_are_left_out_of_all_but_i_x_f() -> None:
    images, labels = digits(0, 60).tensors
    labels[::4] = -100
    rows = ProbeRows.of(Probe((Batch(images, labels),)), Multiclass(), 10, 16, 0)
    assert rows.samples is not None and len(rows.targets) == 45 and -100 not in rows.targets
    assert rows.counts.tolist() == (labels != -100).long().tolist()
    project = Project().eval()
    found = extract_features(project, rows, LOGITS)
    assert found.logits is not None and found.hits is not None
    torch.testing.assert_close(found.logits, project(images)[labels != -100].detach())
    truth = float((project(images).argmax(1) == labels)[labels != -100].double().mean())
    assert rows.share(found.hits).value == pytest.approx(truth)


@pytest.mark.parametrize(("task", "told"), [(Tokens(), 1), (CausalLM(), 0)])
def test_tokens_that_a_text_does_not_have(task: Task, told: int) -> None:
    """Nobody's text has the whole vocabulary, but tags that are not there are worth a word."""
    ids = torch.arange(60).remainder(5)[:, None].expand(60, 3).contiguous()
    rows = ProbeRows.of(Probe((Batch({"input_ids": ids}, ids),)), task, 7, 16, 0)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        tell_of_missing_classes(rows)
    assert [str(warning.message)[:52] for warning in found] == [
        "The probe set has no sample of 2 of 7 classes (5, 6)"
    ] * told


def test_a_draw_is_the_same_whatever_the_other_samples_are() -> None:
    samples = torch.arange(5).repeat_interleave(30)
    drawn = draw_rows(samples, 7, seed=1)
    assert torch.equal(torch.bincount(samples[drawn]), torch.full((5,), 7))
    assert torch.equal(drawn, drawn.sort().values) and len(drawn.unique()) == 35
    part = draw_rows(samples[60:], 7, seed=1)
    assert torch.equal(part + 60, drawn[samples[drawn] >= 2])
    assert not torch.equal(draw_rows(samples, 7, seed=2), drawn)
    assert torch.equal(draw_rows(samples, 30, seed=1), torch.arange(150))


def test_samples_have_draws_of_their_own() -> None:
    rows = draw_rows(torch.arange(4).repeat_interleave(1000), 10, 0).view(4, 10) % 1000
    assert len({tuple(drawn) for drawn in rows.tolist()}) == 4


def test_hits_are_counted_on_all_pixels_and_logits_kept_of_some() -> None:
    rows = of_pixels(side=32)
    network = Segmenter().eval()
    found = extract_features(network, rows, LOGITS)
    images, targets = masks(0, 60, 32)
    output = network(images).detach()
    valid = targets != IGNORED
    right = (output.argmax(1) == targets) & valid
    assert found.hits is not None and found.logits is not None and rows.samples is not None
    assert found.hits.tolist() == right.sum((1, 2)).tolist()
    assert torch.equal(rows.counts, valid.sum((1, 2)))
    assert rows.share(found.hits).value == pytest.approx(float(right.sum() / valid.sum()))
    assert len(found.logits) == len(rows.targets) == int(rows.counts.clamp_max(MOST_ROWS).sum())
    whole = output.movedim(1, -1).reshape(60, -1, 2)
    for sample in (0, 17, 59):
        mine = found.logits[rows.samples == sample]
        assert all(bool(torch.isclose(whole[sample], row).all(1).any()) for row in mine), (
            "they are rows of this very sample"
        )
    # the draw does not depend on how many samples run at a time
    other = of_pixels(side=32, batch_size=7)
    assert torch.equal(other.targets, rows.targets) and torch.equal(other.samples, rows.samples)
    again = extract_features(network, other, LOGITS)
    torch.testing.assert_close(again.logits, found.logits)


def test_errors_are_by_sample() -> None:
    """All pixels of a sample alike: the error is that of as many draws as there are samples."""
    rows = of_pixels(side=32, count=400)
    assert rows.samples is not None
    of_samples = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert rows.term(of_samples[rows.samples]).error == pytest.approx(float(of_samples.std()) / 20, rel=0.5)
    assert rows.row_folds.shape == rows.samples.shape
    assert torch.equal(rows.row_folds, rows.folds[rows.samples])


def test_logits_that_are_not_kept_are_looked_at() -> None:
    rows = of_pixels(side=32)
    kept = rows.parts[0].kept
    assert kept is not None
    (gone,) = [row for row in range(32 * 32) if row not in kept.tolist()][:1]

    class Spoilt(Segmenter):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output = super().forward(x).clone()
            output[0, :, gone // 32, gone % 32] = float("nan")
            return output

    assert not extract_features(Spoilt().eval(), rows, LOGITS).finite
    assert extract_features(Segmenter().eval(), rows, LOGITS).finite


def test_all_targets_ignored() -> None:
    images, targets = masks(0, 60)
    with pytest.raises(ArgumentError, match="ignore_index=255 is the target of all"):
        ProbeRows.of(Probe((Batch(images, torch.full_like(targets, IGNORED)),)), Pixels(), 2, 16, 0)


@pytest.mark.parametrize("rule", [MI(layer="stem"), "accuracy", "loss", "mcmi"])
def test_a_harvest_of_segmenters(tmp_path: Path, rule: Any) -> None:
    networks = write_harvest(str(tmp_path))
    images, targets = masks(100, 200)
    loader = DataLoader(TensorDataset(images, targets), 30)
    selection = MISelector(rule=rule, task=Pixels(), num_teachers=1).select(
        tmp_path, Segmenter(), loader, progress=False
    )
    valid = targets != IGNORED
    for candidate, network in zip(selection.candidates, networks, strict=True):
        output = network(images).detach()
        assert candidate.accuracy == pytest.approx(float((output.argmax(1) == targets)[valid].double().mean()))
        flat, labels = output.movedim(1, -1)[valid], targets[valid]
        if rule == "loss":
            shares = torch.bincount(labels).double() / len(labels)
            truth = float(-(shares * shares.log()).sum() - F.cross_entropy(flat.double(), labels))
            assert candidate.score == pytest.approx(truth, abs=1e-9), "64 pixels at most, so all of them"
        if isinstance(rule, MI):
            folds = torch.arange(len(labels)) % 5
            assert candidate.label_information == pytest.approx(float(head_gains(flat, labels, folds).mean()), abs=0.02)
            assert candidate.input_information is not None and candidate.input_information > 0
    document = json.loads((tmp_path / "selection.json").read_text())
    assert document["settings"]["task"] == {
        "name": "pixels",
        "ignore_index": 255,
        "class_weights": None,
        "label_smoothing": 0.0,
    }
    assert document["probe"]["size"] == 100 and document["probe"]["rows"] == int(valid.sum())


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (MI(layer="stem", given_label=True), "given_label=True needs one class index a sample"),
        (MI(layer="stem", label_estimator="logistic"), "label_estimator='logistic' needs one class index a sample"),
        (MI(feature="logits"), "feature='logits' is for one row of logits a sample"),
    ],
)
def test_what_needs_one_row_a_sample(tmp_path: Path, rule: MI, message: str) -> None:
    write_harvest(str(tmp_path), count=1)
    loader = DataLoader(TensorDataset(*masks(100, 200)), 30)
    with pytest.raises(ArgumentError, match=message):
        MISelector(rule=rule, task=Pixels()).select(tmp_path, Segmenter(), loader, progress=False)
    assert MISelector(rule=MI(layer="stem"), task=Pixels()).select(tmp_path, Segmenter(), loader, progress=False).chosen
