from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_ckptkd import MISelector, SnapshotError, SnapshotStore
from lightning_ckptkd.information.uncertainty import student_quantile
from lightning_ckptkd.selecting.report import numbers_by_step
from lightning_ckptkd.selecting.rules import MCMI, MI, Accuracy, Full, HeldOut, Rule
from lightning_ckptkd.selecting.score import Score, Term
from lightning_ckptkd.selecting.worth import COARSE_NATS, LEAST_NATS, worth_of
from lightning_ckptkd.snapshots import Candidate, Selection, Worth
from lightning_ckptkd.snapshots.seal import sealed
from tests.projects import Project, digits

NATS = HeldOut("label_information")


def course(
    means: list[float], spread: float = 0.2, samples: int = 2000, *, seed: int = 0, epochs: list[int] | None = None
) -> list[Score]:
    """Snapshots that tell so much on the mean: what a sample adds goes up and down with the snapshot, too."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(samples, generator=generator).double()
    scores = []
    for place, mean in enumerate(means):
        own = torch.randn(samples, generator=generator).double()
        values = mean + shared - shared.mean() + spread * own
        term = Term.of(values, 0, min(20, samples // 5))
        epoch = place if epochs is None else epochs[place]
        scores.append(Score(Candidate(f"{place}", "0" * 64, epoch, 10 * place), {"label_information": term}))
    return scores


def judge(
    scores: list[Score], *chosen: int, rule: Rule | None = None, held_out: HeldOut | None = NATS, size: int = 2000
) -> Worth:
    return worth_of(scores, [str(place) for place in chosen], rule or MI(), held_out, size)


def test_over_fitted() -> None:
    worth = judge(course([1.0, 1.5, 1.5, 1.4, 1.3]), 1, 2)
    assert worth.matters is True
    assert worth.lacks_nats == pytest.approx(0.2, abs=0.02)
    assert worth.standard_error == pytest.approx(0.2 * 1.5**0.5 / 2000**0.5, rel=0.5)
    assert worth.lacks_nats and worth.standard_error
    many = round(worth.lacks_nats / worth.standard_error)
    assert worth.sentence == (
        f"over-fitted after epoch 2: the last snapshot lacks {worth.lacks_nats:.4f} ± {worth.standard_error:.4f} nats "
        f"({many} standard errors) of the chosen"
    )
    by_step = judge(course([1.0, 1.5, 1.5, 1.4, 1.3], epochs=[0, 0, 0, 1, 1]), 1, 2)
    assert by_step.sentence.startswith("over-fitted after step 20: ")


def test_nothing_to_choose() -> None:
    worth = judge(course([0.5, 1.0, 1.5, 1.5, 1.5, 1.5]), 2, 4)
    assert worth.matters is False
    assert worth.sentence == "nothing to choose: all snapshots from epoch 2 on are equal within their errors"
    everywhere = judge(course([1.5] * 6), 2, 4)
    assert everywhere.sentence == "nothing to choose: all snapshots are equal within their errors"
    last = judge(course([0.5, 1.0, 1.5]), 2)
    assert (last.lacks_nats, last.standard_error, last.matters) == (0, 0, False)
    assert last.sentence == "nothing gained by the choice: the last snapshot is what was chosen"
    apart = judge(course([1.5, 1.0, 1.5]), 0)
    assert apart.matters is False and apart.sentence.endswith("nats of the chosen, which is within errors")


def test_a_difference_that_is_sure_and_too_small() -> None:
    worth = judge(course([1.0, 1.5, 1.5 - LEAST_NATS / 2], spread=0.01), 1)
    assert worth.matters is False
    assert worth.sentence == f"nothing to choose: all snapshots from epoch 1 on are equal within {LEAST_NATS} nats"
    apart = judge(course([1.5, 1.0, 1.5 - LEAST_NATS / 2], spread=0.01), 0)
    assert apart.sentence.startswith("nothing to choose: the last snapshot lacks 0.0")
    assert apart.sentence.endswith("standard errors) of the chosen, too little to matter")


def test_a_choice_that_has_less_than_the_last() -> None:
    worth = judge(course([1.0, 1.2, 1.5]), 1)
    assert worth.matters is False and worth.lacks_nats == pytest.approx(-0.3, abs=0.03)
    assert worth.sentence.startswith("nothing gained by the choice: the last snapshot has 0.3")
    coarse = judge(course([1.0, 1.0, 3.0], spread=1.0, samples=200), 1, size=200)  # no loss of 0.05 would be seen
    assert coarse.matters is False
    assert coarse.sentence.startswith("nothing gained by the choice: the last snapshot has 1.97 ± ")


def test_where_it_cannot_be_said() -> None:
    few = judge(course([1.0, 1.5, 1.0], samples=60), 1, size=60)
    assert few.matters is None and few.lacks_nats is None
    assert few.sentence.endswith("a probe of 60 samples is too small, 100 or more are needed")
    coarse = judge(course([1.5] * 6, spread=1.0, samples=200), 1, size=200)
    assert coarse.matters is None and coarse.lacks_nats is not None
    assert f"a loss of {COARSE_NATS} nats would not be seen; about " in coarse.sentence
    enough = int(coarse.sentence.split("; about ")[1].split()[0])
    larger = judge(course([1.5] * 6, spread=1.0, samples=2 * enough), 1, size=2 * enough)
    assert larger.matters is False, "the remedy works"
    more = judge(course([1.4, 1.5], spread=2.0, samples=200), 0, size=200)
    assert more.matters is None and more.lacks_nats is not None and more.lacks_nats < 0
    assert "the last snapshot has 0." in more.sentence and "nats more than the chosen, and on 200" in more.sentence
    assert "lacks" not in more.sentence


@pytest.mark.parametrize(("share", "degrees", "known"), [(0.975, 19, 2.093), (0.9995, 19, 3.883), (0.995, 10, 3.169)])
def test_quantiles_of_student(share: float, degrees: int, known: float) -> None:
    assert student_quantile(share, degrees) == pytest.approx(known, rel=0.01)


@pytest.mark.parametrize("rule", [Full(), MCMI()])
def test_rules_without_information(rule: Rule) -> None:
    worth = judge(course([1.0, 1.5, 1.0]), 1, rule=rule, held_out=None)
    assert (worth.lacks_nats, worth.standard_error, worth.matters) == (None, None, None)
    assert f"rule {rule.name!r} does not measure what snapshots tell of held-out labels" in worth.sentence


def test_accuracy_says_points() -> None:
    scores = course([0.7, 0.8, 0.75], spread=0.1)
    worth = judge(scores, 1, rule=Accuracy(), held_out=HeldOut("label_information", "points of accuracy", 100.0))
    assert worth.matters is None and worth.lacks_nats is None
    assert worth.sentence.startswith("it can't be said whether the choice matters: the last snapshot lacks 4.")
    assert "points of accuracy of the chosen, and rule 'accuracy' does not measure nats" in worth.sentence


def test_a_last_snapshot_that_is_excluded_is_passed_over() -> None:
    scores = course([1.0, 1.5, 1.2])
    scores.append(Score(Candidate("3", "0" * 64, 3, 30, excluded="NaN")))
    assert "the last usable snapshot (epoch 2) lacks 0.29" in judge(scores, 1).sentence


def test_chance_rarely_says_that_it_matters() -> None:
    """The best of 20 equal snapshots always looks better than the last; 200 draws, at most as many as are allowed."""
    said = 0
    for seed in range(200):
        scores = course([1.5] * 20, spread=1.0, samples=300, seed=seed)
        best = max(range(20), key=lambda place: scores[place].terms["label_information"].value)
        said += judge(scores, best, size=300).matters is True
    assert said <= 200 * 0.06


def test_through_the_selector(harvest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loader = DataLoader(digits(1000, 1200), 64)
    for rule in ("mi", "loss", "accuracy", "half"):
        selection = MISelector(rule=rule, num_teachers=1).select(harvest, Project(), loader, progress=False)
        worth = selection.worth
        assert worth is not None
        assert json.loads((harvest / "selection.json").read_text())["worth"] == vars(worth)
        assert worth.sentence[1:] in capsys.readouterr().out
        assert Selection.read(SnapshotStore.open(harvest)) == selection
        logged = {name for _, numbers in numbers_by_step(selection) for name in numbers}
        assert ("selection/last_lacks_nats" in logged) == (rule in ("mi", "loss"))
        if rule in ("mi", "loss"):
            chosen = next(c for c in selection.candidates if c.file in selection.chosen)
            field = "label_information" if rule == "mi" else "score"
            expected = getattr(chosen, field) - getattr(selection.candidates[-1], field)
            assert worth.lacks_nats == pytest.approx(expected, abs=1e-12)


def test_records_that_are_old_or_forged(harvest: Path) -> None:
    MISelector(rule="half").select(harvest, progress=False)
    file = harvest / "selection.json"
    document = json.loads(file.read_text())
    document["worth"]["matters"] = 1
    file.write_text(json.dumps(sealed(document)))
    with pytest.raises(SnapshotError, match="'matters' should be true, false or null but is 1"):
        Selection.read(SnapshotStore.open(harvest))
    del document["worth"]
    file.write_text(json.dumps(sealed(document)))
    assert Selection.read(SnapshotStore.open(harvest)).worth is None
