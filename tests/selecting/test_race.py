from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_ckptkd import MISelector, SnapshotError, SnapshotStore, Soup
from lightning_ckptkd.information.racing import View, parts_of, quantile, surely_below, who_leaves
from lightning_ckptkd.information.uncertainty import jackknife_error, leave_one_out
from lightning_ckptkd.selecting.report import numbers_by_step
from lightning_ckptkd.selecting.rules import MCMI, MI, Accuracy, HeldOut, Loss
from lightning_ckptkd.selecting.score import Score, Term
from lightning_ckptkd.selecting.snapshot_scorer import SnapshotScorer
from lightning_ckptkd.selecting.worth import worth_of
from lightning_ckptkd.snapshots import Candidate, Selection
from tests.projects import Project, digits

SAMPLES = 700


def probe() -> DataLoader[Any]:
    return DataLoader(digits(1000, 1000 + SAMPLES), 64)


def view(values: Tensor) -> View:
    """Of what each sample adds, shape (S, N)."""
    return View.of(values.mean(1), torch.stack([leave_one_out(row, 0) for row in values], 1))


def test_parts() -> None:
    assert parts_of(2000) == (250, 500, 1000)
    assert parts_of(400) == (128, 200)
    assert parts_of(256) == (128,)
    assert parts_of(254) == ()


def test_what_is_sure_is_divided_over_all_snapshots_and_parts() -> None:
    assert quantile(30, 3, 20) == pytest.approx(stats.t.ppf(1 - 0.05 / 90, 19), rel=5e-3)


def test_one_far_below_leaves_and_the_best_with_a_bad_start_stays() -> None:
    torch.manual_seed(0)
    sure, wrongly, rightly, behind = quantile(3, 3, 20), 0, 0, 0
    for _ in range(60):
        common = torch.randn(2000, dtype=torch.float64)
        means = torch.tensor([[0.05], [0.0], [-1.0]], dtype=torch.float64)
        values = common + means + 0.5 * torch.randn(3, 2000, dtype=torch.float64)
        for size in parts_of(2000):
            found = view(values[:, :size])
            leaves = who_leaves([found], sure, size / 2000, 1)
            behind += int(found.low[0] < found.low[1])
            wrongly += int(leaves[values.mean(1).argmax()])
            rightly += int(leaves[2])
    assert behind > 5  # the best did start badly
    assert wrongly == 0
    assert rightly == 180


def test_as_many_stay_as_are_chosen() -> None:
    torch.manual_seed(0)
    noise = 0.01 * torch.randn(5, 500, dtype=torch.float64)
    values = noise + torch.tensor([[5.0], [4.0], [3.0], [2.0], [1.0]], dtype=torch.float64)
    for count in (1, 2, 4, 5):
        leaves = who_leaves([view(values)], 4.0, 0.25, count)
        assert leaves.tolist() == [place >= count for place in range(5)]


def test_ties_keep_what_is_within_the_error_of_the_best() -> None:
    torch.manual_seed(0)
    values = torch.randn(2, 500, dtype=torch.float64)
    found = view(values - values.mean(1, keepdim=True))
    error = float(jackknife_error(found.low_replicates[:, 0] - found.high_replicates[:, 1]))
    for more, leaves in ((-0.1, [False, False]), (0.3, [False, True])):  # than what is sure, in errors on the part
        high = found.high - torch.tensor([0.0, (4.0 * 0.5**0.5 + more) * error])
        low = found.low - torch.tensor([0.0, 10 * error])
        apart = View(low, found.low_replicates, high, found.high_replicates)
        assert who_leaves([apart], 4.0, 0.5, 1).tolist() == leaves
        assert not who_leaves([apart], 4.0, 0.5, 1, first_by_ties=True).any()


def test_each_view_has_to_say_so() -> None:
    torch.manual_seed(0)
    values = 0.01 * torch.randn(2, 500, dtype=torch.float64) + torch.tensor([[1.0], [0.0]])
    assert who_leaves([view(values)], 4.0, 0.25, 1).tolist() == [False, True]
    assert not who_leaves([view(values), view(values.flip(0))], 4.0, 0.25, 1).any()


def test_what_is_surely_below_a_floor() -> None:
    values = torch.tensor([1.0, 0.95, 0.5], dtype=torch.float64)
    replicates = values + 0.01 * torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    below, above = surely_below(values, replicates, 0.95, 3.0)
    assert below.tolist() == [False, False, True]
    assert above.tolist() == [True, False, False]


@pytest.mark.parametrize("rule", [MI(), MI(label_floor=0.0, ties="earlier"), Loss(), Accuracy(ties="later")])
def test_those_that_stay_have_the_scores_of_the_full_table(harvest: Path, rule: Any) -> None:
    chosen: dict[bool, Selection] = {}
    for race in (False, True):
        selector = MISelector(rule=rule, num_teachers=1, race=race)
        chosen[race] = selector.select(harvest, Project(), probe(), progress=False)
        (harvest / "scores.json").unlink()
    full, raced = chosen[False], chosen[True]
    assert all(candidate.scored_on is None for candidate in full.candidates)
    left = [candidate for candidate in raced.candidates if candidate.scored_on is not None]
    assert left, "a snapshot of one epoch is behind"
    assert {candidate.scored_on for candidate in left} <= {128, 175, 350}
    assert raced.candidates[-1].scored_on is None
    assert raced.chosen == full.chosen
    for one, other in zip(raced.candidates, full.candidates, strict=True):
        if one.scored_on is None:
            assert one.score == pytest.approx(other.score, rel=1e-5)
            assert one.score_error == pytest.approx(other.score_error, rel=1e-3)
        else:
            assert one.rank is None
            assert one.excluded is None
            assert one.accuracy == pytest.approx(other.accuracy, abs=0.15)


def test_the_last_snapshot_is_scored_on_all_however_far_it_is_behind(harvest: Path) -> None:
    store = SnapshotStore.open(harvest)
    weights = store.load(store.snapshots[-1])
    weights["classifier.weight"] = -weights["classifier.weight"]
    with SnapshotStore.create(harvest, store.manifest.run_id, {}) as store:
        store.commit(weights, epoch=4, global_step=store.snapshots[-1].global_step + 1)
    raced = MISelector(rule="loss", num_teachers=1, race=True).select(harvest, Project(), probe(), progress=False)
    assert raced.candidates[-1].scored_on is None and raced.candidates[-1].rank is not None
    assert raced.candidates[0].scored_on is not None, "others that are behind have left"


def test_a_file_that_was_damaged_since_it_was_scored(harvest: Path) -> None:
    first = MISelector(num_teachers=1, race=True).select(harvest, Project(), probe(), progress=False)
    for candidate in (first.candidates[0], first.candidates[-1]):  # one that left, and one that did not
        file = harvest / candidate.file
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(SnapshotError, match=candidate.file):
            MISelector(num_teachers=1, race=True).select(harvest, Project(), probe(), progress=False)
        file.write_bytes(whole)
    MISelector(num_teachers=1, race=True).select(harvest, Project(), probe(), progress=False)


def test_what_left_is_shown(harvest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rule in ("mi", "loss"):
        selection = MISelector(rule=rule, num_teachers=1, race=True).select(harvest, Project(), probe(), progress=False)
        left = [candidate for candidate in selection.candidates if candidate.scored_on is not None]
        table = capsys.readouterr().out
        assert f"race: {len(left)} of 4 snapshots left after a part of the samples" in table
        assert table.count("left at ") == len(left)
        entries = json.loads((harvest / "selection.json").read_text())["snapshots"]
        assert [entry["scored_on"] for entry in entries] == [one.scored_on for one in selection.candidates]
        told = dict(numbers_by_step(selection))
        assert told[left[0].global_step]["selection/scored_on"] == left[0].scored_on


def test_a_score_on_a_part_is_not_taken_for_a_full_one(harvest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    run = SnapshotScorer.run

    def count(self: SnapshotScorer, weights: Any, file: str, rows: Any) -> Any:
        runs.append(len(rows))
        return run(self, weights, file, rows)

    monkeypatch.setattr(SnapshotScorer, "run", count)
    first = MISelector(num_teachers=1, race=None).select(harvest, Project(), probe(), progress=False)
    samples = sum(candidate.scored_on or SAMPLES for candidate in first.candidates)
    assert sum(runs) == samples < 4 * SAMPLES  # nothing was run twice
    runs.clear()
    again = MISelector(num_teachers=1, race=None).select(harvest, Project(), probe(), progress=False)
    assert not runs
    assert again.candidates == first.candidates
    full = MISelector(num_teachers=1, race=False).select(harvest, Project(), probe(), progress=False)
    assert sum(runs) == 4 * SAMPLES
    runs.clear()
    known = MISelector(num_teachers=1, race=None).select(harvest, Project(), probe(), progress=False)
    assert not runs
    assert known.candidates == full.candidates  # what is known is shown


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"probe_size": 200}, "200 probe samples are too few"),
        ({"rule": MCMI()}, "scores on a part do not foretell"),
        ({"rule": MI(normalisation="max")}, "scores on a part do not foretell"),
        ({"ensemble": "spaced"}, "another ensemble than 'top'"),
        ({"ensemble": Soup()}, "another ensemble than 'top'"),
        ({"rule": "half"}, "goes by position"),
    ],
)
def test_where_there_is_no_race(
    harvest: Path, options: dict[str, Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for race in (None, True):
        caplog.clear()
        selector = MISelector(**options, num_teachers=1, race=race)
        selection = selector.select(harvest, Project(), probe(), probe(), progress=False)
        assert all(candidate.scored_on is None for candidate in selection.candidates)
        said = [record.message for record in caplog.records if "race=True" in record.message]
        assert len(said) == (1 if race else 0)
        assert all(why in line for line in said)
        (harvest / "scores.json").unlink(missing_ok=True)


def test_nobody_leaves_where_nobody_can_be_told_apart(
    harvest: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("lightning_ckptkd.information.racing.DOUBT", 1e-12)
    monkeypatch.setattr("lightning_ckptkd.selecting.race.parts_of", lambda size: (128,))
    rule = Accuracy(ties="later")
    selection = MISelector(rule=rule, num_teachers=3, race=True).select(harvest, Project(), probe(), progress=False)
    assert all(candidate.scored_on is None for candidate in selection.candidates)
    assert sum("no snapshot was surely behind" in record.message for record in caplog.records) == 1


def scored(epoch: int, value: float, on: int | None = None) -> Score:
    candidate = Candidate(f"{epoch}", "0" * 64, epoch, epoch, scored_on=on)
    wobble = 0.001 * torch.randn(20, generator=torch.Generator().manual_seed(epoch)).double()
    return Score(candidate, {"label_information": Term(value, tuple((value + wobble).tolist()))})


def test_what_left_is_in_no_sentence_that_it_may_contradict() -> None:
    nats, told = HeldOut("label_information"), {}
    for name, of_left in (("fallen", 1.0), ("as good", 1.5)):
        scores = [scored(0, 0.5), scored(1, 1.5), scored(2, of_left, 250), scored(3, 1.0)]
        parts = {250: {score.candidate.file: score for score in scores}}
        told[name] = worth_of(scores, ["1"], MI(), nats, 2000, parts).sentence
    assert told["fallen"].startswith("over-fitted after epoch 1: the last snapshot lacks 0.50")
    assert told["as good"].startswith("over-fitted after epoch 1 at the earliest: the last snapshot lacks 0.50")
    level = [scored(0, 0.5), scored(1, 1.0), scored(2, 0.9, 250), scored(3, 1.0)]
    sentence = worth_of(level, ["1"], MI(), nats, 2000, {}).sentence
    assert "all snapshots that were scored on all samples from epoch 1 on are equal" in sentence
