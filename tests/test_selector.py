from __future__ import annotations

import contextlib
import itertools
import json
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, default_collate

from lightning_ckptkd import (
    ArgumentError,
    CheckpointHarvester,
    CkptKDError,
    MISelector,
    SelectionError,
    SnapshotError,
    SnapshotStore,
    TeacherError,
)
from lightning_ckptkd.commands.cli import main
from lightning_ckptkd.information.cmi import cmi_parts
from lightning_ckptkd.selecting import ScoreFiles, SelectionSettings
from lightning_ckptkd.selecting.items import Item
from lightning_ckptkd.selecting.probe import collect_probe
from lightning_ckptkd.selecting.rules import MI, Accuracy, make_rule
from lightning_ckptkd.selecting.score import Score, Term
from lightning_ckptkd.selecting.score_files import scoring_key
from lightning_ckptkd.selecting.snapshot_scorer import SnapshotScorer
from lightning_ckptkd.snapshots import Candidate, Selection
from lightning_ckptkd.tasks.reading import BatchReader
from tests.projects import DigitsData, Project, digits, make_trainer, to_write


def probe(start: int = 1000, stop: int = 1200) -> DataLoader[Any]:
    return DataLoader(digits(start, stop), 64)


def spoil(folder: Path, index: int) -> str:
    """Put NaN into a snapshot, as a diverged run would have."""
    with to_write(folder) as store:
        snapshot = store.snapshots[index]
        weights = store.load(snapshot)
        weights["classifier.bias"][0] = float("nan")
        return store.commit(weights, epoch=snapshot.epoch, global_step=snapshot.global_step).file


def test_when_fitting_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    selector = MISelector(num_teachers=2)
    trainer = make_trainer(tmp_path, CheckpointHarvester(), selector, logger=CSVLogger(tmp_path, name="l", version=0))
    trainer.fit(Project(), DigitsData())
    folder = tmp_path / "l" / "version_0" / "snapshots"
    document = json.loads((folder / "selection.json").read_text())

    entries = document["snapshots"]
    assert [entry["epoch"] for entry in entries] == [0, 1, 2, 3]
    for entry in entries:
        assert entry["input_information"] > 0
        assert entry["label_information"] <= document["probe"]["label_entropy"]
        assert entry["score"] == pytest.approx(entry["input_term"] + entry["label_term"])
        assert 0 < entry["input_error"] < entry["input_information"]
        assert 0 < entry["label_error"] < 0.2
        assert entry["score_error"] >= 0
    best_first = sorted(entries, key=lambda entry: entry["rank"])
    assert [entry["rank"] for entry in best_first] == [1, 2, 3, 4]
    for better, worse in itertools.pairwise(best_first):
        assert better["score"] >= worse["score"] - 2 * (better["score_error"] + worse["score_error"])
    assert document["chosen"] == [entry["file"] for entry in best_first[:2]]
    assert document["settings"]["seed"] == 0
    assert document["probe"]["size"] == 200
    with Image.open(folder / "selection.png") as picture:
        assert picture.size[0] > 1000

    table = capsys.readouterr().out
    assert "2 of 4 snapshots chosen by rule 'mi' on 200 probe samples" in table
    assert table.count("| chosen |") == 2
    rows = (tmp_path / "l" / "version_0" / "metrics.csv").read_text()
    assert "selection/input_information" in rows
    assert selector.selection == Selection.read(SnapshotStore.open(folder))


def test_the_callback_and_the_folder_alone_agree(trained: tuple[Path, Project], harvest: Path) -> None:
    at_fit_end = MISelector().select(harvest, trained[1], probe(), progress=False)
    alone = MISelector().select(harvest, Project(), probe(), progress=False)
    assert alone.candidates == at_fit_end.candidates
    assert alone.chosen == at_fit_end.chosen


def test_the_bound_of_the_input_term(harvest: Path) -> None:
    selection = MISelector(rule=MI(input_estimator="contrastive")).select(harvest, Project(), probe(), progress=False)
    ceiling = math.log(40)  # inputs that each of 200 samples is held against
    for candidate in selection.candidates:
        assert 0.5 < candidate.input_information < ceiling
        assert candidate.input_term == pytest.approx(candidate.input_information / ceiling) or not candidate.input_term
    with pytest.raises(ArgumentError, match="given_label=True is for input_estimator='gaussian', got 'contrastive'"):
        MI(input_estimator="contrastive", given_label=True)


@pytest.mark.parametrize("input_estimator", ["gaussian", "convolutional"])
@pytest.mark.parametrize("label_estimator", ["head", "logistic", "convolutional"])
def test_estimators(harvest: Path, input_estimator: str, label_estimator: str) -> None:
    rule = MI(input_estimator=input_estimator, label_estimator=label_estimator, decoder_steps=30)
    first = MISelector(rule=rule).select(harvest, Project(), probe(), progress=False)
    again = MISelector(rule=rule).select(harvest, Project(), probe(), progress=False)
    assert again.candidates == first.candidates
    assert all(candidate.input_information > 0.5 for candidate in first.candidates)
    seeded = MISelector(rule=rule, seed=5, probe_size=150).select(harvest, Project(), probe(), progress=False)
    assert [c.input_information for c in seeded.candidates] != [c.input_information for c in first.candidates]


def test_weights_and_normalisation_decide(harvest: Path) -> None:
    def scores(**options: Any) -> list[Any]:
        return list(MISelector(rule=MI(**options)).select(harvest, Project(), probe(), progress=False).candidates)

    for candidate in scores(label_floor=1.0)[:1]:
        assert candidate.input_term == 0
    for candidate in scores(normalisation="entropy", label_floor=0.0):
        assert 0 < candidate.input_term < 1
        assert 0 < candidate.label_term < 1
    for candidate in scores(input_weight=0.0):
        assert candidate.score == candidate.label_term
    for candidate in scores(label_weight=0.0, input_weight=2.0):
        assert candidate.score == pytest.approx(2 * candidate.input_term)
    spread = [candidate.input_term for candidate in scores(normalisation="minmax")]
    assert (min(spread), max(spread)) == (0, 1)


@pytest.mark.parametrize(
    "options",
    [
        {"feature": "logits"},
        {"feature": "probabilities", "temperature": 2.0},
        {"given_label": True},
        {"normalisation": "max", "input_estimator": "convolutional", "likelihood": "gaussian", "decoder_steps": 20},
        {
            "normalisation": "max",
            "input_estimator": "convolutional",
            "likelihood": "continuous_bernoulli",
            "decoder_steps": 20,
        },
    ],
)
def test_what_the_input_term_is_of(harvest: Path, options: dict[str, Any]) -> None:
    default = MISelector().select(harvest, Project(), probe(), progress=False)
    found = MISelector(rule=MI(**options)).select(harvest, Project(), probe(), progress=False)
    pairs = list(zip(default.candidates, found.candidates, strict=True))
    assert all(a.input_information != b.input_information for a, b in pairs)
    assert all(a.label_information == b.label_information for a, b in pairs)


def test_information_of_predictions_beyond_the_label(harvest: Path) -> None:
    selection = MISelector(rule="mcmi", num_teachers=1).select(harvest, Project(), probe(), progress=False)
    store = SnapshotStore.open(harvest)
    project, (images, labels) = Project().eval(), digits(1000, 1200).tensors
    for snapshot, candidate in zip(store.snapshots, selection.candidates, strict=True):
        project.load_state_dict(store.load(snapshot))
        truth = float(cmi_parts(project(images).softmax(1).detach(), labels).mean())
        assert candidate.score == pytest.approx(truth, rel=1e-5)


def test_a_set_that_is_chosen_together(harvest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    single = MISelector(num_teachers=1).select(harvest, Project(), probe(), progress=False)
    selection = MISelector(ensemble="greedy", num_teachers=3).select(harvest, Project(), probe(), progress=False)
    assert selection.chosen[0] == single.chosen[0]
    assert [step.file for step in selection.joint] == list(selection.chosen)
    told = [step.input_information for step in selection.joint]
    assert told == sorted(told), "a larger set tells more"
    assert Selection.read(SnapshotStore.open(harvest)) == selection
    assert capsys.readouterr().out.count("joint choice: epoch") == 3
    open_ended = MISelector(ensemble="greedy").select(harvest, Project(), probe(), progress=False)
    assert 1 <= len(open_ended.chosen) <= 4
    for step in open_ended.joint[1:]:
        assert step.gain > step.gain_error


def test_a_number_of_teachers_from_the_data(harvest: Path) -> None:
    selection = MISelector(num_teachers="auto").select(harvest, Project(), probe(), progress=False)
    by_rank = sorted(selection.candidates, key=lambda candidate: candidate.rank or 0)
    assert [step.file for step in selection.joint] == list(selection.chosen)
    assert list(selection.chosen) == [candidate.file for candidate in by_rank[: len(selection.chosen)]]
    assert selection.settings["num_teachers"] == "auto"
    assert selection.joint[0].label_information == pytest.approx(by_rank[0].label_information, abs=0.02)
    assert Selection.read(SnapshotStore.open(harvest)) == selection


def test_a_number_from_the_data_where_only_the_rule_asks_for_it(harvest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the default would do it: where the sets can't be told apart three are taken, and nothing is refused."""
    asked = MISelector(num_teachers="auto").select(harvest, Project(), probe(), progress=False)
    monkeypatch.setattr(MI, "num_teachers", "auto")
    selector = MISelector(ensemble="top")
    assert selector.select(harvest, Project(), probe(), progress=False).chosen == asked.chosen
    greedy = MISelector(ensemble="greedy").select(harvest, Project(), probe(), progress=False)
    assert MISelector(ensemble="greedy", num_teachers="auto").select(
        harvest, Project(), probe(), progress=False
    ).chosen == (greedy.chosen)
    soft = [(x, torch.nn.functional.one_hot(y, 10).float()) for x, y in probe()]
    for selector, batches in (
        (MISelector(ensemble="top"), soft),
        (MISelector(ensemble="spaced"), probe()),
        (MISelector(rule=MI(input_estimator="convolutional", decoder_steps=2), ensemble="top"), probe()),
    ):
        found = selector.select(harvest, Project(), batches, progress=False)
        assert len(found.chosen) == 3 and not found.joint


def test_which_of_equal_snapshots_is_first(harvest: Path) -> None:
    """Twins of a snapshot, before and after it in training: their scores are exactly equal."""
    with to_write(harvest) as store:
        last = store.snapshots[-1]
        weights = store.load(last)
        twins = [
            store.commit(weights, epoch=last.epoch + more, global_step=last.global_step + more).file for more in (1, 2)
        ]
    for rule in ("mi", "loss", "accuracy", "mcmi"):
        kind = type(make_rule(rule))
        found = {
            ties: MISelector(rule=kind(ties=ties), num_teachers=1).select(harvest, Project(), probe(), progress=False)
            for ties in ("later", "earlier")
        }
        ranks = [
            [c.rank or 0 for c in found[ties].candidates if c.file in (last.file, *twins)]
            for ties in ("later", "earlier")
        ]
        assert ranks[0] == sorted(ranks[0], reverse=True) and ranks[1] == sorted(ranks[1])
        assert found["earlier"].settings["rule"]["ties"] == "earlier"
    scored = json.loads((harvest / "scores.json").read_text())["scores"]
    assert len(scored) == 4 * 4, "another tie rule has the same key; twins have the same weights"


def test_a_set_of_no_neighbours(harvest: Path) -> None:
    selection = MISelector(ensemble="spaced", num_teachers=2).select(harvest, Project(), probe(), progress=False)
    epochs = {candidate.file: candidate.epoch for candidate in selection.candidates}
    first, second = (epochs[file] for file in selection.chosen)
    assert abs(first - second) >= 1


def test_classes_that_the_probe_set_lacks_are_listed(harvest: Path) -> None:
    images, labels = digits(1000, 1400).tensors
    some = DataLoader(TensorDataset(images[labels < 7], labels[labels < 7]), 64)
    with pytest.warns(UserWarning, match=r"no sample of 3 of 10 classes \(7, 8, 9\)") as told:
        MISelector().select(harvest, Project(), some, progress=False)
    assert len([warning for warning in told if "no sample of" in str(warning.message)]) == 1


def test_features_that_never_change_are_excluded(harvest: Path) -> None:
    with to_write(harvest) as store:
        snapshot = store.snapshots[1]
        weights = {name: torch.zeros_like(value) for name, value in store.load(snapshot).items()}
        dead = store.commit(weights, epoch=snapshot.epoch, global_step=snapshot.global_step).file
    selection = MISelector().select(harvest, Project(), probe(), progress=False)
    (excluded,) = [candidate for candidate in selection.candidates if candidate.excluded]
    assert excluded.file == dead
    assert excluded.excluded == "its features are the same for each probe sample"


def test_baselines(harvest: Path) -> None:
    files = [snapshot.file for snapshot in SnapshotStore.open(harvest).snapshots]
    for rule, count, chosen in (
        ("full", None, [3]),
        ("half", None, [1]),
        ("spaced", 2, [3, 1]),
        ("spaced", None, None),
    ):
        selection = MISelector(rule=rule, num_teachers=count).select(harvest, progress=False)
        assert selection.rule == rule
        if chosen is not None:
            assert list(selection.chosen) == [files[index] for index in chosen]
        assert selection.candidates[0].input_information is None
        assert (harvest / "selection.png").stat().st_size > 1000
    assert len(selection.chosen) == 3


def test_accuracy_rule(harvest: Path) -> None:
    selection = MISelector(rule="accuracy", num_teachers=1).select(harvest, Project(), probe(), progress=False)
    store = SnapshotStore.open(harvest)
    project, (images, labels) = Project().eval(), digits(1000, 1200).tensors
    truth = []
    for snapshot in store.snapshots:
        project.load_state_dict(store.load(snapshot))
        truth.append(float((project(images).argmax(1) == labels).float().mean()))
    assert [candidate.accuracy for candidate in selection.candidates] == pytest.approx(truth)
    assert selection.chosen == (store.snapshots[truth.index(max(truth))].file,)


def test_the_model_is_handed_back_as_it_came(harvest: Path) -> None:
    project = Project().train()
    project.backbone.eval()
    before = {name: value.clone() for name, value in project.state_dict().items()}
    modes = [module.training for module in project.modules()]
    state = torch.get_rng_state()
    MISelector().select(harvest, project, probe(), progress=False)
    assert all(torch.equal(value, before[name]) for name, value in project.state_dict().items())
    assert [module.training for module in project.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_a_harvested_submodule_is_found_in_the_whole(tmp_path: Path) -> None:
    project = Project()
    make_trainer(tmp_path, CheckpointHarvester(tmp_path / "h", submodule="classifier"), max_epochs=2).fit(
        project, DigitsData()
    )
    features = [(project.eval().backbone(x).detach(), y) for x, y in probe()]
    whole = MISelector().select(tmp_path / "h", project, features, progress=False)
    part = MISelector().select(tmp_path / "h", project.classifier, features, progress=False)
    assert whole.candidates == part.candidates


def test_a_backbone_without_logits(tmp_path: Path) -> None:
    selector = MISelector(rule=MI(layer="7", label_estimator="logistic"))
    harvester = CheckpointHarvester(tmp_path / "h", submodule="backbone")
    make_trainer(tmp_path, harvester, selector, max_epochs=2).fit(Project(), DigitsData())
    assert selector.selection is not None
    assert all(candidate.label_information > 0.3 for candidate in selector.selection.candidates)


def test_nan_is_excluded_and_never_chosen(harvest: Path) -> None:
    spoilt = spoil(harvest, 3)
    for selection in (
        MISelector().select(harvest, Project(), probe(), progress=False),
        MISelector(rule="full").select(harvest, progress=False),
        MISelector(rule="accuracy").select(harvest, Project(), probe(), progress=False),
    ):
        excluded = {c.file: (c.excluded, c.rank) for c in selection.candidates if c.excluded}
        assert excluded == {spoilt: ("its weights hold NaN or infinity in 'classifier.bias'", None)}
        assert spoilt not in selection.chosen
        assert selection.chosen


def test_features_that_overflow_are_excluded(harvest: Path) -> None:
    with to_write(harvest) as store:
        weights = {
            name: value * 1e30 if value.is_floating_point() else value
            for name, value in store.load(store.snapshots[0]).items()
        }
        store.commit(weights, epoch=0, global_step=store.snapshots[0].global_step)
    selection = MISelector().select(harvest, Project(), probe(), progress=False)
    assert selection.candidates[0].excluded == "its features or logits on the probe set are not finite"


def test_fewer_snapshots_than_asked_for(harvest: Path) -> None:
    with pytest.raises(SelectionError, match=r"num_teachers=9, but .* has 4 usable of 4 snapshots.*--num_teachers 4"):
        MISelector(num_teachers=9).select(harvest, Project(), probe(), progress=False)
    spoil(harvest, 0)
    with pytest.raises(SelectionError, match=r"has 3 usable of 4 snapshots. .* is excluded: its weights hold NaN"):
        MISelector(num_teachers=4).select(harvest, Project(), probe(), progress=False)
    for index in range(1, 4):
        spoil(harvest, index)
    with pytest.raises(SelectionError, match=r"has 0 usable of 4.*are kept; none of them can teach\.$"):
        MISelector().select(harvest, Project(), probe(), progress=False)
    assert not (harvest / "selection.json").exists()


def test_labels_outside_the_teachers_classes(harvest: Path) -> None:
    images, labels = digits(1000, 1200).tensors
    with pytest.raises(ArgumentError, match=r"Labels run from 1 to 10, but the teacher has 10 classes"):
        MISelector().select(harvest, Project(), [(images, labels + 1)], progress=False)


def test_a_label_that_means_none(harvest: Path) -> None:
    images, labels = digits(1000, 1200).tensors
    labels = torch.where(torch.arange(200) % 4 == 0, -1, labels)
    with pytest.raises(ArgumentError, match=r"Labels run from -1 to 9.* or the label that means none as ignore_index"):
        MISelector().select(harvest, Project(), [(images, labels)], progress=False)
    selection = MISelector(ignore_index=-1).select(harvest, Project(), [(images, labels)], progress=False)
    used = labels >= 0
    without = MISelector().select(harvest, Project(), [(images[used], labels[used])], progress=False)
    for candidate, other in zip(selection.candidates, without.candidates, strict=True):
        assert candidate.accuracy == other.accuracy
        assert candidate.label_information == pytest.approx(other.label_information, abs=0.02)
    assert selection.settings["task"]["ignore_index"] == -1


def test_a_module_that_takes_the_whole_batch(harvest: Path) -> None:
    class Whole(Project):
        def forward(self, batch: Any) -> Tensor:
            return super().forward(batch["image"])

    batches = [{"image": x, "label": y} for x, y in probe()]
    by_default = MISelector().select(harvest, Whole(), batches, progress=False)
    assert all(candidate.label_information is not None for candidate in by_default.candidates)
    plain = MISelector(rule="accuracy").select(harvest, Project(), probe(), progress=False)
    found = MISelector(rule="accuracy").select(harvest, Whole(), batches, progress=False)
    assert [c.accuracy for c in found.candidates] == [c.accuracy for c in plain.candidates]


def test_a_snapshot_of_another_architecture(harvest: Path) -> None:
    with pytest.raises(TeacherError, match=r"epoch=0-.* does not fit model=Project. shapes differ: backbone.0.weight"):
        MISelector().select(harvest, Project(channels=4), probe(), progress=False)


@pytest.mark.parametrize("scored_before", [False, True])
def test_a_damaged_snapshot(harvest: Path, scored_before: bool) -> None:
    if scored_before:  # then its score is found, and nothing would have to be loaded
        MISelector().select(harvest, Project(), probe(), progress=False)
    file = harvest / SnapshotStore.open(harvest).snapshots[1].file
    save_file({"x": torch.ones(1)}, file)
    with pytest.raises(SnapshotError, match="bytes where the manifest says"):
        MISelector().select(harvest, Project(), probe(), progress=False)
    with pytest.raises(SnapshotError, match="bytes where the manifest says"):
        MISelector(rule="full").select(harvest, progress=False)


def test_a_teacher_that_returns_a_tuple(tmp_path: Path) -> None:
    class Tuple(Project):
        def forward(self, x: Tensor) -> Any:
            features = self.backbone(x)
            return features, self.classifier(features)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0])[1], batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            pass

    make_trainer(tmp_path, CheckpointHarvester(tmp_path / "h"), max_epochs=2).fit(Tuple(), DigitsData())
    with pytest.raises(ArgumentError, match=r"Tuple returns tuple of 2 .*, not a tensor of logits.*logits_key"):
        MISelector().select(tmp_path / "h", Tuple(), probe(), progress=False)
    selection = MISelector(logits_key=1).select(tmp_path / "h", Tuple(), probe(), progress=False)
    assert all(candidate.accuracy is not None for candidate in selection.candidates)


def test_unpack_batch_can_be_overridden(harvest: Path) -> None:
    class Reversed(MISelector):
        def unpack_batch(self, batch: Any) -> tuple[Tensor, Tensor]:
            return batch[1], batch[0]

    swapped = [(y, x) for x, y in probe()]
    chosen = MISelector().select(harvest, Project(), probe(), progress=False).chosen
    assert Reversed().select(harvest, Project(), swapped, progress=False).chosen == chosen
    selector = MISelector(unpack_batch=lambda batch: (batch[1], batch[0]))
    assert selector.select(harvest, Project(), swapped, progress=False).chosen == chosen
    by_name = [{"what": y, "image": {"grey": x}} for x, y in probe()]
    selector = MISelector(input_keys="image.grey", target_key="what")
    assert selector.select(harvest, Project(), by_name, progress=False).chosen == chosen


def test_no_validation_data_and_no_probe(tmp_path: Path) -> None:
    class NoValidation(Project):
        validation_step = None  # type: ignore[assignment]

    train = DataLoader(digits(0, 64), 32)
    with pytest.raises(ArgumentError, match=r"probe_split='val': the run has no such data"):
        make_trainer(tmp_path, CheckpointHarvester(), MISelector()).fit(NoValidation(), train)
    assert not (tmp_path / "snapshots").exists(), "it fails before it trains"
    for selector in (MISelector(probe=probe()), MISelector(probe_split="train"), MISelector(rule="full")):
        folder = tmp_path / f"{selector.probe_split}_{selector.settings.rule.name}_{selector.probe is None}"
        make_trainer(folder, CheckpointHarvester(), selector, max_epochs=1).fit(NoValidation(), train)
        assert selector.selection is not None


def test_splits_and_lists_of_loaders(tmp_path: Path) -> None:
    class Lists(DigitsData):
        def val_dataloader(self) -> Any:
            return [super().val_dataloader(), super().test_dataloader()]

    class ManyLoaders(Project):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            pass

    for split in ("val", "test"):
        selector = MISelector(probe_split=split)
        make_trainer(tmp_path / split, CheckpointHarvester(), selector, max_epochs=1).fit(ManyLoaders(), Lists())
        assert selector.selection is not None
        assert selector.selection.probe["size"] == 200


def test_no_harvest_to_select_from(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"MISelector\(snapshots=None\) has nothing to select from"):
        make_trainer(tmp_path, MISelector()).fit(Project(), DigitsData())
    with pytest.raises(SnapshotError, match="so there are no snapshots"):
        MISelector().select(tmp_path, Project(), probe())


def test_fast_dev_run(tmp_path: Path) -> None:
    make_trainer(tmp_path, CheckpointHarvester(), MISelector(), fast_dev_run=True).fit(Project(), DigitsData())
    assert not (tmp_path / "snapshots").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "best"}, "rule='best' is unknown"),
        ({"rule": "los"}, "rule='los' is unknown. Near names: 'loss'"),
        ({"rul": "mi"}, "MISelector has no option 'rul'. Near names: 'rule'"),
        ({"task": "multclass"}, "task='multclass' is unknown. Near names: 'multiclass'"),
        ({"input_keys": "x", "unpack_batch": len}, "unpack_batch says all that input_keys and target_key could say"),
        ({"num_teachers": 0}, "num_teachers should be 1 or more, got 0"),
        ({"num_teachers": "all"}, "num_teachers should be a number, 'auto' or None, got 'all'"),
        ({"num_teachers": "auto", "rule": "half"}, "num_teachers='auto' needs rule='mi' .*Use a number, or leave"),
        ({"num_teachers": "auto", "rule": "loss"}, "num_teachers='auto' needs rule='mi' with input_estimator"),
        ({"num_teachers": "auto", "ensemble": "spaced"}, "keeps a distance that depends on their number"),
        ({"ties": "earlier"}, r"ties is an option of the rule now: rule=MI\(ties='earlier'\)"),
        ({"probe_split": "valid"}, "probe_split should be one of val, train, test, got 'valid'"),
        ({"probe_size": 0}, "probe_size should be 1 or more"),
        ({"ensemble": "gready"}, "ensemble='gready' is unknown. Near names: 'greedy'"),
        (
            {"ensemble": "greedy", "rule": "accuracy"},
            "ensemble='greedy' needs rule='mi' with input_estimator='gaussian'",
        ),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        MISelector(**options)


def test_what_is_missing_without_a_run(harvest: Path) -> None:
    with pytest.raises(
        ArgumentError, match=r"needs the model that was trained, 'tests\.projects\.Project'\. Give both"
    ):
        MISelector().select(harvest, None, probe(), progress=False)
    with pytest.raises(ArgumentError, match="needs data to probe it with"):
        MISelector().select(harvest, Project(), None, progress=False)
    with pytest.raises(ArgumentError, match="the inputs have the shape"):
        MISelector(rule=MI(input_estimator="convolutional")).select(
            harvest, Project(), [(torch.randn(60, 8), torch.zeros(60, dtype=torch.long))], progress=False
        )


class Shifted(DigitsData):
    def val_dataloader(self) -> Any:
        images, labels = digits(1000, 1200).tensors
        return DataLoader(TensorDataset(images, labels + 1), 32)


class Empty(DigitsData):
    def val_dataloader(self) -> Any:
        return []


@pytest.mark.parametrize(
    ("selector", "harvester", "data", "message"),
    [
        ({"rule": MI(layer="clasifier")}, {}, DigitsData(), "layer='clasifier'.*'classifier'"),
        ({"rule": MI(input_estimator="convolutional", layer="classifier")}, {}, DigitsData(), "needs a feature map"),
        ({}, {"submodule": "backbone"}, DigitsData(), "label_estimator='head' needs the teacher's logits"),
        (
            {"rule": "accuracy"},
            {"submodule": "backbone"},
            DigitsData(),
            "rule='accuracy' needs the teacher's logits",
        ),
        ({}, {}, Shifted(), "Labels run from .*, but the teacher has 5 classes"),
        ({}, {}, Empty(), "there is no dataloader to probe with"),
    ],
)
def test_what_would_fail_at_the_end_fails_before_training(
    tmp_path: Path, selector: dict[str, Any], harvester: dict[str, Any], data: Any, message: str
) -> None:
    project = Project(num_classes=5 if isinstance(data, Shifted) else 10)
    with pytest.raises(ArgumentError, match=message):
        make_trainer(tmp_path, CheckpointHarvester(**harvester), MISelector(**selector), num_sanity_val_steps=0).fit(
            project, data
        )
    assert not (tmp_path / "snapshots").exists()


def test_loaders_that_were_given_to_fit_and_never_ran(tmp_path: Path) -> None:
    selector = MISelector()
    trainer = make_trainer(
        tmp_path, CheckpointHarvester(), selector, max_epochs=1, num_sanity_val_steps=0, check_val_every_n_epoch=5
    )
    trainer.fit(Project(), DataLoader(digits(0, 64), 32), probe())
    assert selector.selection is not None


def test_a_compiled_network(tmp_path: Path) -> None:
    project = Project()
    project.backbone = torch.compile(project.backbone, backend="eager")  # type: ignore[assignment]
    selector = MISelector()
    make_trainer(tmp_path, CheckpointHarvester(), selector, max_epochs=1).fit(project, DigitsData())
    assert selector.selection is not None
    plain = MISelector().select(tmp_path / "snapshots", Project(), probe(), progress=False)
    assert plain.candidates[0].accuracy == selector.selection.candidates[0].accuracy


def test_random_transforms_are_seeded(harvest: Path) -> None:
    class Noisy(Dataset[Any]):
        def __len__(self) -> int:
            return 200

        def __getitem__(self, index: int) -> Any:
            image, label = digits(1000, 1200)[index]
            return image + torch.randn_like(image), label

    selector = MISelector(probe=DataLoader(Noisy(), 64), probe_size=100)
    first = selector.select(harvest, Project(), progress=False)
    torch.rand(5)
    assert selector.select(harvest, Project(), progress=False).candidates == first.candidates


def test_images_of_bytes(tmp_path: Path) -> None:
    class Bytes(Project):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.float() / 16)

    images, labels = digits(0, 200).tensors
    loader = DataLoader(TensorDataset((images * 16).byte(), labels), 32)
    selector = MISelector()
    make_trainer(tmp_path, CheckpointHarvester(), selector, max_epochs=1).fit(Bytes(), loader, loader)
    assert selector.selection is not None


def test_selecting_after_a_fit_that_was_cut_short(tmp_path: Path) -> None:
    class Crash(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 2:
                raise KeyError("crash")

    whole = MISelector(num_teachers=1)
    make_trainer(tmp_path, CheckpointHarvester(tmp_path / "whole"), whole, max_epochs=2).fit(Project(), DigitsData())
    seed_everything(0, verbose=False)
    trainer = make_trainer(tmp_path, CheckpointHarvester(tmp_path / "cut"), MISelector(num_teachers=1), Crash())
    with pytest.raises(KeyError, match="crash"):
        trainer.fit(Project(), DigitsData())
    assert not (tmp_path / "cut" / "selection.json").exists()
    cut = MISelector(num_teachers=1).select(tmp_path / "cut", Project(), DigitsData().val_dataloader(), progress=False)
    assert whole.selection is not None
    for a, b in zip(cut.candidates, whole.selection.candidates, strict=True):
        assert replace(a, file="") == replace(b, file="")


def test_a_selection_that_was_interrupted_goes_on(harvest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[int] = []
    real = SnapshotScorer.score

    def score(self: SnapshotScorer, item: Item) -> Score:
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(item.snapshot.epoch)
        return real(self, item)

    def select(**settings: Any) -> Selection:
        return MISelector(**settings).select(harvest, Project(), probe(), progress=False)

    monkeypatch.setattr(SnapshotScorer, "score", score)
    with pytest.raises(KeyboardInterrupt):
        select()
    assert len(list(harvest.glob("score-*.json"))) == 2
    monkeypatch.setattr(
        SnapshotScorer, "score", lambda self, item: (scored.append(item.snapshot.epoch), real(self, item))[1]
    )
    resumed = select(num_teachers=2, rule=MI(normalisation="minmax"))
    assert scored == [0, 1, 2, 3]
    assert not list(harvest.glob("score-*.json")), "all scores are in one file"
    again = select(num_teachers=2, rule=MI(normalisation="minmax"))
    assert scored == [0, 1, 2, 3]
    assert again.candidates == resumed.candidates
    select(num_teachers=1, ensemble="greedy", rule=MI(input_weight=0.5))
    assert scored == [0, 1, 2, 3], "no score depends on how it is used"
    select(rule=MI(feature="logits"))
    select()
    assert scored == [0, 1, 2, 3, 0, 1, 2, 3], "scores of other settings are kept beside"
    (harvest / "scores.json").unlink()
    fresh = select(num_teachers=2, rule=MI(normalisation="minmax"))
    assert scored == [0, 1, 2, 3] * 3
    assert fresh.candidates == resumed.candidates


@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("change", ["settings", "rule", "probe", "model", "weights", "damage"])
def test_scores_of_something_else_are_not_taken(harvest: Path, change: str, gathered: bool) -> None:
    store = SnapshotStore.open(harvest)
    settings, rule, samples = SelectionSettings(), MI(), collect_probe(probe(), 100, 0, BatchReader())
    snapshot = store.snapshots[0]
    terms = {"input_information": Term(1.0, (1.5, 2.5)), "label_information": Term(0.3, (0.5, 0.25))}
    score = Score(Candidate(snapshot.file, snapshot.sha256, 0, snapshot.global_step), terms)
    files, key = ScoreFiles(store), scoring_key(settings, rule, Project(), samples)
    files.write(key, snapshot, score)
    if gathered:
        files.gather(key, [score])
        assert not list(harvest.glob("score-*.json"))
    assert ScoreFiles(store).read(scoring_key(settings, MI(), Project(), samples), snapshot) == score
    model: nn.Module = Project()
    if change == "settings":
        settings = SelectionSettings(seed=1)
    elif change == "rule":
        rule = MI(given_label=True)
    elif change == "probe":
        samples = collect_probe(probe(), 100, 1, BatchReader())
    elif change == "model":
        model = Project(channels=4)
    elif change == "weights":
        snapshot = replace(snapshot, sha256=snapshot.sha256[:16] + "0" * 48)
    else:
        (path,) = harvest.glob("score*.json")
        path.write_text(path.read_text()[:-20])
    told = pytest.warns(UserWarning, match="is not used") if change == "damage" else contextlib.nullcontext()
    with told:
        assert ScoreFiles(store).read(scoring_key(settings, rule, model, samples), snapshot) is None


class Late(DigitsData):
    """A label out of range in a late validation sample, where nothing can know of it before the end."""

    def val_dataloader(self) -> Any:
        data = digits(1000, 1200)
        data.tensors[1][150] = 10
        return DataLoader(ListOf(data), 32)


class ListOf(Dataset[Any]):
    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.data[index]


class Quiet(Project):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass


class Few(DigitsData):
    """A stream, whose length shows when it ends."""

    def val_dataloader(self) -> Any:
        return DataLoader(StreamOf(digits(1000, 1040)), 32)


class StreamOf(IterableDataset[Any]):
    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __iter__(self) -> Any:
        return (self.data[index] for index in range(len(self.data)))


class StopsEarly(Quiet):
    def on_train_epoch_end(self) -> None:
        self.trainer.should_stop = self.current_epoch == 1


def words_of(command: str) -> list[str]:
    return shlex.split(command)[1:]


@pytest.mark.parametrize(
    ("kind", "data", "options", "reason"),
    [
        (Quiet, Late(), {}, r"Labels run from 0 to 10, but the teacher has 10 classes"),
        (Quiet, Few(), {}, r"The probe set has 40 samples; at least 50 are needed"),
        (StopsEarly, DigitsData(), {"num_teachers": 4, "ensemble": "spaced"}, r"num_teachers=4, but .* has 2 usable"),
    ],
)
def test_a_selection_that_goes_wrong_does_not_end_a_training(
    tmp_path: Path, kind: Any, data: Any, options: dict[str, Any], reason: str
) -> None:
    selector = MISelector(**options)
    trainer = make_trainer(tmp_path, CheckpointHarvester(), selector)
    project = kind()
    with pytest.warns(UserWarning, match=rf"MISelector: training is done and its snapshots are kept.*{reason}") as told:
        trainer.fit(project, data)
    assert trainer.state.finished and selector.selection is None
    assert trainer.test(OwnTest(project), DigitsData(), verbose=False)[0]["seen"] == 1
    folder = tmp_path / "snapshots"
    assert SnapshotStore.open(folder).snapshots
    (message,) = [str(warning.message) for warning in told if "Select by hand" in str(warning.message)]
    command = message.partition("Select by hand: `")[2].partition("`")[0]
    assert words_of(command)[:2] == ["select", str(folder)]
    assert f"--model tests.test_selector.{kind.__name__}" in command
    assert f"--data tests.test_selector.{type(data).__name__}" in command or type(data) is DigitsData
    if "num_teachers" in options:  # what it says works as it stands
        assert "--ensemble spaced" in command and "--num_teachers" not in command
        assert len(main(words_of(command)).chosen) == 2
    with pytest.raises(CkptKDError, match=reason):
        make_trainer(tmp_path / "raise", CheckpointHarvester(), MISelector(**options, on_error="raise")).fit(
            kind(), data
        )


class OwnTest(LightningModule):
    def __init__(self, project: Project) -> None:
        super().__init__()
        self.project = project

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("seen", float(torch.isfinite(self.project(batch[0])).all()))


def test_what_selects_by_hand_where_nothing_can_be_named(tmp_path: Path) -> None:
    data = Few()
    with pytest.warns(UserWarning, match="which goes by position, or in Python MISelector") as told:
        make_trainer(tmp_path, CheckpointHarvester(), MISelector(), max_epochs=2).fit(
            Quiet(), data.train_dataloader(), data.val_dataloader()
        )
    (message,) = [str(warning.message) for warning in told if "Select by hand" in str(warning.message)]
    assert len(main(words_of(message.partition("by hand: `")[2].partition("`")[0])).chosen) == 2


class Broken(DigitsData):
    def val_dataloader(self) -> Any:
        def collate(items: list[Any]) -> Any:
            if any(float(label) == 3 for _, label in items) and len(items) > 8:
                raise OSError("the disk is gone")
            return default_collate(items)

        return DataLoader(digits(1000, 1200), 32, collate_fn=collate)


def test_errors_of_others_do_not_end_a_training_either(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, CheckpointHarvester(), MISelector(), limit_val_batches=0, max_epochs=1)
    with pytest.warns(UserWarning, match="none was chosen: OSError: the disk is gone. Select by hand: `ckptkd select"):
        trainer.fit(Quiet(), Broken())
    with pytest.raises(ArgumentError, match="on_error should be warn or raise, got 'ignore'"):
        MISelector(on_error="ignore")


@pytest.mark.parametrize(
    ("harvester", "selector", "trainer", "most"),
    [
        ({}, {"num_teachers": 5}, {}, 4),
        ({"every_n_epochs": 3}, {"num_teachers": 2}, {}, 1),
        ({"epochs": [0, 7]}, {"num_teachers": 2}, {}, 1),
        ({"epochs": [7]}, {}, {}, 0),
        ({"keep_last": 2}, {"num_teachers": 3, "rule": "spaced"}, {}, 2),
        ({"every_n_train_steps": 4}, {"num_teachers": 3}, {"max_steps": 11, "max_epochs": -1}, 2),
        ({"window": (0.5, 1.0)}, {"num_teachers": 3}, {}, 2),
    ],
)
def test_fewer_snapshots_to_come_than_teachers(
    tmp_path: Path, harvester: dict[str, Any], selector: dict[str, Any], trainer: dict[str, Any], most: int
) -> None:
    wanted = selector.get("num_teachers", 1)
    with pytest.raises(ArgumentError, match=rf"num_teachers={wanted}, but this training gives {most} snapshots? at"):
        make_trainer(tmp_path, CheckpointHarvester(**harvester), MISelector(**selector), **trainer).fit(
            Project(), DigitsData()
        )
    assert not (tmp_path / "snapshots").exists()


class LateTensors(DigitsData):
    def val_dataloader(self) -> Any:
        data = digits(1000, 1200)
        data.tensors[1][150] = 10
        return DataLoader(Subset(data, range(1, 200)), 32)


class Small(DigitsData):
    def val_dataloader(self) -> Any:
        return DataLoader(digits(1000, 1040), 32)


@pytest.mark.parametrize(
    ("data", "selector", "message"),
    [
        (LateTensors(), {}, "Labels run from 0 to 10, but the teacher has 10 classes"),
        (LateTensors(), {"rule": "accuracy"}, "Labels run from 0 to 10"),
        (Small(), {}, "The probe set has 40 samples; at least 50 are needed"),
        (DigitsData(), {"probe_size": 20}, "The probe set has 20 samples"),
    ],
)
def test_data_that_could_not_be_scored_show_before_training(
    tmp_path: Path, data: Any, selector: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        make_trainer(tmp_path, CheckpointHarvester(), MISelector(**selector)).fit(Quiet(), data)
    assert not (tmp_path / "snapshots").exists()


def test_ties_of_no_name() -> None:
    for rule in (Accuracy, MI):
        with pytest.raises(ArgumentError, match="ties='latest' is unknown"):
            rule(ties="latest")
        rule(ties="later")
