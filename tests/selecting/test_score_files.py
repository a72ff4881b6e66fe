from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from lightning_ckptkd import MISelector, SnapshotStore
from lightning_ckptkd.selecting import ScoreFiles
from lightning_ckptkd.selecting.score import Score, Term
from lightning_ckptkd.selecting.snapshot_scorer import SnapshotScorer
from lightning_ckptkd.snapshots import Candidate, Selection
from lightning_ckptkd.snapshots.seal import sealed
from tests.projects import Project, digits

KEY = "0" * 64


def made(store: SnapshotStore) -> ScoreFiles:
    """A score of each snapshot, gathered."""
    files = ScoreFiles(store)
    files.gather(
        KEY,
        [
            Score(
                Candidate(snapshot.file, snapshot.sha256, snapshot.epoch, snapshot.global_step),
                {"a": Term(1.0, (1.5, 2.5)), "b": Term(0.3, (0.5, 0.25))},
            )
            for snapshot in store.snapshots
        ],
    )
    return files


def edit(harvest: Path, change: Callable[[dict[str, Any]], object], seal: bool = False) -> None:
    """Change the second score."""
    path = harvest / "scores.json"
    document = json.loads(path.read_text())
    change(document["scores"][1])
    if seal:
        document["scores"][1] = sealed(document["scores"][1])
    path.write_text(json.dumps(document))


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "an edited term": lambda score: score["terms"][0].update(value=3.0),
    "a null": lambda score: score["terms"][0].update(value=None),
    "cut replicates": lambda score: score["terms"][0]["replicates"].pop(),
    "no replicates": lambda score: score["terms"][0].update(replicates=None),
    "an edited epoch": lambda score: score["snapshot"].update(epoch=7),
    "an edited number": lambda score: score["snapshot"].update(accuracy=0.99),
    "a term less": lambda score: score["terms"].pop(),
    "another key": lambda score: score.update(key="1" * 64),
    "no snapshot": lambda score: score.pop("snapshot"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_edited_score_is_made_anew(harvest: Path, store: SnapshotStore, change: str) -> None:
    made(store)
    edit(harvest, CHANGES[change])
    with pytest.warns(UserWarning, match=r"scores.json: 1 of 4 scores were changed since they were written") as told:
        files = ScoreFiles(store)
    assert len(told) == 1
    assert [files.read(KEY, snapshot) is None for snapshot in store.snapshots] == [False, True, False, False]


@pytest.mark.filterwarnings("ignore:.*scores were changed")
@pytest.mark.parametrize("change", ["a null", "cut replicates", "no replicates", "an edited epoch", "no snapshot"])
def test_a_seal_does_not_make_it_right(harvest: Path, store: SnapshotStore, change: str) -> None:
    made(store)
    edit(harvest, CHANGES[change], seal=True)
    assert ScoreFiles(store).read(KEY, store.snapshots[1]) is None


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": "lightning_ckptkd.scores", "version": 3}', "{"])
def test_a_file_of_something_else(harvest: Path, store: SnapshotStore, content: str) -> None:
    (harvest / "scores.json").write_text(content)
    with pytest.warns(UserWarning, match=r"scores.json is not used, and what it held is scored anew"):
        assert ScoreFiles(store).read(KEY, store.snapshots[0]) is None


def test_the_choice_is_as_if_nothing_was_edited(harvest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def select() -> Selection:
        return MISelector(num_teachers=1).select(harvest, Project(), DataLoader(digits(1000, 1100), 64), progress=False)

    first = select()
    loser = next(number for number, found in enumerate(first.candidates) if found.file != first.chosen[0])
    path = harvest / "scores.json"
    document = json.loads(path.read_text())
    for term in document["scores"][loser]["terms"]:
        term["value"] += 100.0
    path.write_text(json.dumps(document))
    scored: list[int] = []
    real = SnapshotScorer.score
    monkeypatch.setattr(
        SnapshotScorer, "score", lambda self, item: (scored.append(item.snapshot.epoch), real(self, item))[1]
    )
    with pytest.warns(UserWarning, match="1 of 4 scores were changed"):
        again = select()
    assert scored == [first.candidates[loser].epoch]
    assert (again.chosen, again.candidates) == (first.chosen, first.candidates)
    select()  # told once
