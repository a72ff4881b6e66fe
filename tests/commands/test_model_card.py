"""The card of a student: what it says, as the Hub's own library reads it, and what a hostile checkpoint can't."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from huggingface_hub import CommitOperationAdd, ModelCard
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_ckptkd import (
    ArgumentError,
    DistillationModule,
    MISelector,
    SnapshotError,
    SnapshotStore,
    write_model_card,
)
from lightning_ckptkd.commands.cli import main
from lightning_ckptkd.snapshots import Selection
from tests.projects import DigitsData, Project, make_trainer
from tests.selecting.test_soup import fitted, linear, noisy, probe, write


def test_a_folder_for_the_hub(harvest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The choice and the numbers are those of selection.json and of the log."""
    MISelector(rule="accuracy", num_teachers=2).select(harvest, Project(), DigitsData().val_dataloader())
    own = ModelCheckpoint(dirpath=tmp_path, filename="run")
    student = DistillationModule(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), Project(), harvest, acceleration="none"
    )
    trainer = make_trainer(tmp_path, own, max_epochs=1, enable_checkpointing=True)
    trainer.fit(student, DigitsData())
    folder = tmp_path / "student"
    out = folder / "model.safetensors"
    main(["export", str(tmp_path / "run.ckpt"), str(out), "--card", "true", "--snapshots", str(harvest)])
    assert f"Its model card is {folder / 'README.md'}." in capsys.readouterr().out
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "pytorch" and "knowledge-distillation" in card.data.tags
    assert card.data.license is None and "add `license:` above" in card.text
    for file in folder.iterdir():
        CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=file)
    assert "Of 4 snapshots, chosen by the rule accuracy on 200 samples." in card.text
    found = Selection.read(SnapshotStore.open(harvest))
    assert len(found.chosen) == 2
    for candidate in found.candidates:
        words = f"| {candidate.file.replace('_', '&#95;')} | {candidate.sha256} |"
        row = (
            f"| {candidate.epoch} | {candidate.global_step} | {candidate.score:.4g} |  |  | {candidate.accuracy:.4g} |"
        )
        assert (words in card.text) == (row in card.text) == (candidate.file in found.chosen)
    accuracy = float(trainer.callback_metrics["val_acc"])
    assert f"| val&#95;acc | {accuracy:.4g} |" in card.text
    assert "| alpha | 0.5 |" in card.text and "| epoch | 0 |" in card.text
    with pytest.raises(ArgumentError, match=r"README\.md exists and is not overwritten"):
        write_model_card(tmp_path / "run.ckpt", folder)
    with pytest.raises(ArgumentError, match=r"README\.md exists and is not overwritten"):
        main(["export", str(tmp_path / "run.ckpt"), str(folder / "other.safetensors"), "--card", "true"])
    assert not (folder / "other.safetensors").exists()


def test_what_a_checkpoint_can_not_say(tmp_path: Path) -> None:
    """Names in it are text, whatever they are; numbers that are none are left out."""
    state = {"student.weight": torch.ones(2)}
    evil = {"file": "a|b\n---\nlicense: mit\n<script>", "sha256": "[x](javascript:1)" * 50}
    content = {
        "state_dict": state,
        "hyper_parameters": {"alpha": "\n# Heading", "task": evil},
        "lightning_ckptkd_teachers": [evil, 3],
        "lightning_ckptkd_metrics": {"val_acc": "text", "val_loss": 0.25, "nan": float("nan")},
    }
    torch.save(content, tmp_path / "run.ckpt")
    text = Path(write_model_card(tmp_path / "run.ckpt", tmp_path / "new")).read_text()
    assert "\n# Heading" not in text and "<script" not in text and "](javascript" not in text
    assert text.count("\n---\n") == 1 and "license: mit" not in text.split("---")[1]
    assert "| val&#95;loss | 0.25 |" in text and "val&#95;acc" not in text and "nan" not in text


def test_bad_input(harvest: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": {"student.weight": torch.ones(2)}}, tmp_path / "run.ckpt")
    with pytest.raises(ArgumentError, match=r"holds none of the 0 teachers that the checkpoint names.*or leave it out"):
        write_model_card(tmp_path / "run.ckpt", tmp_path / "new", harvest)
    torch.save({"state_dict": {"weight": torch.ones(2)}}, tmp_path / "other.ckpt")
    with pytest.raises(SnapshotError, match=r"other\.ckpt holds no student"):
        write_model_card(tmp_path / "other.ckpt", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_soup_is_told_by_its_members(tmp_path: Path) -> None:
    optimum = fitted(linear())
    folder = write(tmp_path / "h", [noisy(optimum, 0.6, seed) for seed in range(4)])
    found = MISelector(rule="loss", ensemble="soup").select(folder, linear(), probe(), progress=False)
    assert found.soup["taken"]
    teacher = {"file": found.soup["file"], "sha256": found.soup["sha256"]}
    content = {"state_dict": {"student.weight": torch.ones(2)}, "lightning_ckptkd_teachers": [teacher]}
    torch.save(content, tmp_path / "run.ckpt")
    text = Path(write_model_card(tmp_path / "run.ckpt", tmp_path / "new", folder)).read_text()
    assert "A student of the mean of several snapshots" in text and "(a soup)" in text
    members = {member["epoch"] for member in found.soup["members"]}
    rows = {epoch for epoch in range(4) if f"\n| {epoch} | {10 * (epoch + 1)} |" in text}
    assert rows == members and teacher["sha256"] in text


def test_teachers_that_the_selection_does_not_choose(harvest: Path, tmp_path: Path) -> None:
    """Named by choice=, or chosen before the harvest was selected from again: the card does not say it chose them."""
    found = MISelector(rule="accuracy", num_teachers=2).select(harvest, Project(), DigitsData().val_dataloader())
    others = [item for item in SnapshotStore.open(harvest).snapshots if item.file not in found.chosen]
    for name, items in (("others", others), ("one", others[:1])):
        teachers = [{"file": item.file, "sha256": item.sha256} for item in items]
        content = {"state_dict": {"student.weight": torch.ones(2)}, "lightning_ckptkd_teachers": teachers}
        torch.save(content, tmp_path / "run.ckpt")
        text = Path(write_model_card(tmp_path / "run.ckpt", tmp_path / name, harvest)).read_text()
        assert "The harvest's selection, by the rule accuracy on 200 samples, chooses others" in text
        assert "chosen by" not in text and f"| {items[0].epoch} | {items[0].global_step} |" in text
