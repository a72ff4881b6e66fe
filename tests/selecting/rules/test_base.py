from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_ckptkd import ArgumentError, CheckpointHarvester, MISelector, SelectionError, SnapshotStore
from lightning_ckptkd.selecting.rules import MI, base
from lightning_ckptkd.snapshots import Selection
from tests.projects import DigitsData, Project, digits, make_trainer
from tests.selecting.rules.own import Confidence, Early, Forgetful, Wild

OWN = "tests.selecting.rules.own"


def select(harvest: Path, **options: Any) -> Selection:
    loader = DataLoader(digits(1000, 1200), 64)
    return MISelector(**options).select(harvest, Project(), loader, progress=False)


def test_a_number_for_each_row(harvest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    selection = select(harvest, rule=Confidence(power=2.0), num_teachers=2)
    store, (images, _) = SnapshotStore.open(harvest), digits(1000, 1200).tensors
    for snapshot, candidate in zip(store.snapshots, selection.candidates, strict=True):
        project = Project().eval()
        project.load_state_dict(store.load(snapshot))
        sure = project(images).softmax(1).amax(1).detach() ** 2
        assert candidate.score == pytest.approx(float(sure.mean()), rel=1e-5)
        assert candidate.score_error == pytest.approx(float(sure.std()) / 200**0.5, rel=0.6)
        assert candidate.accuracy is not None
    assert selection.rule == f"{OWN}.Confidence"
    assert selection.settings["rule"] == {"name": f"{OWN}.Confidence", "power": 2.0}
    assert f"2 of 4 snapshots chosen by rule '{OWN}.Confidence' on 200 probe samples" in capsys.readouterr().out
    assert Selection.read(store) == selection
    assert (harvest / "selection.png").stat().st_size > 1000
    spaced = select(harvest, rule=Confidence(power=2.0), ensemble="spaced", num_teachers=2)
    assert len(spaced.chosen) == 2 and len(select(harvest, rule=Confidence()).chosen) == 3


def test_an_order_of_places(harvest: Path) -> None:
    files = [snapshot.file for snapshot in SnapshotStore.open(harvest).snapshots]
    steps = [snapshot.global_step for snapshot in SnapshotStore.open(harvest).snapshots]
    selection = MISelector(rule=Early(after=steps[1]), num_teachers=2).select(harvest, progress=False)
    assert list(selection.chosen) == [files[1], files[2]]
    assert selection.settings["rule"] == {"name": f"{OWN}.Early", "after": steps[1]}
    assert selection.settings["task"] is None
    with pytest.raises(SelectionError, match="num_teachers=9"):
        MISelector(rule=Early(), num_teachers=9).select(harvest, progress=False)


def test_when_fitting_ends(tmp_path: Path) -> None:
    selector = MISelector(rule=Confidence())
    make_trainer(tmp_path, CheckpointHarvester(), selector, max_epochs=2).fit(Project(), DigitsData())
    assert selector.selection is not None and len(selector.selection.chosen) == 2


def test_scores_are_kept_by_options_and_by_the_rules_own_code(harvest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[float] = []
    real = Confidence.values

    def values(self: Confidence, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        ran.append(self.power)
        return real(self, logits, targets)

    monkeypatch.setattr(Confidence, "values", values)
    first = select(harvest, rule=Confidence())
    assert select(harvest, rule=Confidence()).candidates == first.candidates and len(ran) == 4
    select(harvest, rule=Confidence(power=3.0))
    assert ran == [1.0] * 4 + [3.0] * 4
    monkeypatch.setattr(base.inspect, "getsource", lambda _: "what the file says after a change")
    select(harvest, rule=Confidence())
    assert len(ran) == 12
    monkeypatch.setattr(base.inspect, "getsource", lambda _: (_ for _ in ()).throw(OSError("no file")))
    select(harvest, rule=Confidence())
    select(harvest, rule=Confidence())
    assert len(ran) == 16, "the class that is at hand is known again"
    assert MI().key()["code"] == "", "of the package's own the version says it"


def test_a_subclass_of_a_rule_is_another_rule(harvest: Path) -> None:
    class Louder(MI):
        pass

    assert Louder().name.endswith("Louder") and Louder().key() != MI().key()
    ours, theirs = select(harvest), select(harvest, rule=Louder())
    assert [c.score for c in ours.candidates] == [c.score for c in theirs.candidates]


def test_a_score_that_is_not_finite_excludes(harvest: Path) -> None:
    with pytest.raises(SelectionError, match="is excluded: its score on the probe set is not finite"):
        select(harvest, rule=Wild())


def test_a_rule_that_forgets_its_options() -> None:
    with pytest.raises(ArgumentError, match=r"Forgetful takes power .* Write self.power = power in __init__"):
        MISelector(rule=Forgetful())


def test_a_rule_of_no_kind() -> None:
    with pytest.raises(ArgumentError, match=r"rule='.*Rule' should be a ScoringRule or a PositionRule"):
        MISelector(rule=base.Rule())


def test_what_a_rule_cannot_do() -> None:
    with pytest.raises(ArgumentError, match=r"ensemble='greedy' needs rule='mi' .*, got 'tests.*Confidence'"):
        MISelector(rule=Confidence(), ensemble="greedy")
    with pytest.raises(ArgumentError, match=r"ensemble='greedy' needs rule='mi' with input_estimator='gaussian'"):
        MISelector(rule=MI(input_estimator="convolutional"), ensemble="greedy")


def test_from_yaml(harvest: Path, tmp_path: Path) -> None:
    from lightning_ckptkd.commands.cli import main

    config = tmp_path / "select.yaml"
    config.write_text(
        f"""
        snapshots: {harvest}
        model: tests.projects.Project
        data: tests.projects.DigitsData
        rule: {{class_path: {OWN}.Confidence, init_args: {{power: 3}}}}
        """
    )
    selection = main(["select", "--config", str(config)])
    assert selection.settings["rule"] == {"name": f"{OWN}.Confidence", "power": 3.0}
    assert main(["select", "--config", str(harvest / "select.yaml")]).candidates == selection.candidates
    fit = tmp_path / "fit.yaml"
    fit.write_text(
        f"""
        trainer:
          max_epochs: 1
          logger: false
          enable_checkpointing: false
          enable_progress_bar: false
          accelerator: cpu
          default_root_dir: {tmp_path}
          callbacks:
            - lightning_ckptkd.CheckpointHarvester
            - class_path: lightning_ckptkd.MISelector
              init_args: {{rule: {{class_path: {OWN}.Confidence, init_args: {{power: 2}}}}}}
        model: tests.projects.Project
        data: tests.projects.DigitsData
        """
    )
    main(["fit", "--config", str(fit)])
    document = json.loads((tmp_path / "snapshots" / "selection.json").read_text())
    assert document["settings"]["rule"] == {"name": f"{OWN}.Confidence", "power": 2.0}


def test_from_the_command_line(harvest: Path) -> None:
    from lightning_ckptkd.commands.cli import main

    words = ["--model", "tests.projects.Project", "--data", "tests.projects.DigitsData"]
    selection = main(["select", str(harvest), *words, "--rule", f"{OWN}.Confidence", "--rule.power", "3"])
    assert selection.settings["rule"] == {"name": f"{OWN}.Confidence", "power": 3.0}
    steps = [snapshot.global_step for snapshot in SnapshotStore.open(harvest).snapshots]
    early = main(["select", str(harvest), f"--rule={OWN}.Early", f"--rule.after={steps[2]}", "--num_teachers=1"])
    (chosen,) = early.chosen
    assert chosen == SnapshotStore.open(harvest).snapshots[2].file
