"""The student in a file of its own, and how it is loaded without this package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest
import safetensors.torch
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_ckptkd import ArgumentError, DistillationModule, SnapshotError, export_student
from lightning_ckptkd.commands.cli import main
from lightning_ckptkd.commands.run import run
from tests.projects import DigitsData, Project, digits, make_trainer

REPOSITORY = Path(__file__).parents[2]
# what a user has who knows only torch, safetensors and the student's network
LOADING = """
import sys
sys.modules["lightning_ckptkd"] = None
import torch
from safetensors.torch import load_file
from torch import nn

def network():
    convolution, norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
    return nn.Sequential(convolution, norm, nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 10))

x, expected = torch.load("batch.pt", weights_only=True)
checkpoint = torch.load("run.ckpt", weights_only=True)["state_dict"]
for weights in (
    load_file("student.safetensors"),
    torch.load("student.pt", weights_only=True),
    {name.removeprefix("student."): value for name, value in checkpoint.items()},
):
    student = network()
    student.load_state_dict(weights)
    assert torch.equal(student.eval()(x), expected)
try:
    import lightning_ckptkd
except ImportError:
    assert not any(name.startswith("lightning") for name in sys.modules if name != "lightning_ckptkd")
    print("loaded without the package")
"""


def network() -> nn.Sequential:
    layers = (
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    return nn.Sequential(*layers)


def save_run(student: nn.Module, harvest: Path, root: Path) -> Path:
    own = ModelCheckpoint(dirpath=root, filename="run")
    module = DistillationModule(student, Project(), harvest, choice=[3], acceleration="none")
    make_trainer(root, own, max_epochs=1, enable_checkpointing=True).fit(module, DigitsData())
    return root / "run.ckpt"


@pytest.fixture(scope="module")
def distilled(trained: tuple[Path, Project], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """The checkpoint of a distillation, and its student."""
    student = network()
    return save_run(student, trained[0], tmp_path_factory.mktemp("distilled")), student


def same(found: Any, expected: Any) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_without_the_package(distilled: tuple[Path, nn.Module], tmp_path: Path) -> None:
    checkpoint, student = distilled
    for name in ("student.safetensors", "student.pt"):
        main(["export", str(checkpoint), str(tmp_path / name)])
    (tmp_path / "run.ckpt").write_bytes(checkpoint.read_bytes())
    x = digits(0, 16).tensors[0]
    with torch.no_grad():
        torch.save((x, student.eval()(x)), tmp_path / "batch.pt")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    words = [sys.executable, "-c", LOADING]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "loaded without the package", done.stderr


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_what_is_written(distilled: tuple[Path, nn.Module], tmp_path: Path, suffix: str) -> None:
    checkpoint, student = distilled
    out = tmp_path / "new" / f"student{suffix}"
    written = export_student(checkpoint, out)
    loaded = safetensors.torch.load_file(out) if suffix == ".safetensors" else torch.load(out, weights_only=True)
    assert same(written, student.state_dict()) and same(loaded, written)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_behind_a_url_and_in_this_folder(
    distilled: tuple[Path, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    export_student(distilled[0], "student.pt")
    assert same(torch.load(tmp_path / "student.pt", weights_only=True), distilled[1].state_dict())
    export_student(distilled[0], "memory://exported/student.pt")
    with fsspec.open("memory://exported/student.pt") as file:
        assert same(torch.load(file, weights_only=True), distilled[1].state_dict())
    with pytest.raises(ArgumentError, match="exists and is not overwritten"):
        export_student(distilled[0], "memory://exported/student.pt")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flatten, self.first, self.last = nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64)
        self.last.weight = self.first.weight
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.last(torch.tanh(self.first(self.flatten(x)))))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_tied_weights_of_a_compiled_student(harvest: Path, tmp_path: Path, suffix: str) -> None:
    """Each name has its own, so that load_state_dict is strict and the ties of the network stay what they are."""
    student = Tied()
    out = tmp_path / f"student{suffix}"
    export_student(save_run(torch.compile(student, backend="eager"), harvest, tmp_path), out)
    loaded = safetensors.torch.load_file(out) if suffix == ".safetensors" else torch.load(out, weights_only=True)
    assert same(loaded, student.state_dict())
    assert loaded["first.weight"].data_ptr() != loaded["last.weight"].data_ptr()
    again = Tied()
    again.load_state_dict(loaded)
    assert again.last.weight is again.first.weight


def test_names_of_compiled_parts(tmp_path: Path) -> None:
    weight = torch.ones(2)
    state = {"student._orig_mod.a.weight": weight, "_orig_mod.student.b._orig_mod.weight": weight[:1], "other": weight}
    torch.save({"state_dict": state}, tmp_path / "run.ckpt")
    assert same(export_student(tmp_path / "run.ckpt", tmp_path / "s.pt"), {"a.weight": weight, "b.weight": weight[:1]})


def bad_checkpoints(root: Path) -> dict[str, tuple[Any, str]]:
    """Name of a file to what torch.save puts there (bytes as they are), and the error."""
    state = {"student.weight": torch.ones(3)}
    return {
        "no.ckpt": (
            b"no checkpoint",
            r"no\.ckpt can't be read as a checkpoint: .*Nothing in it was run\. Give a \.ckpt",
        ),
        "empty.ckpt": (b"", r"empty\.ckpt can't be read as a checkpoint: its pickle is cut off"),
        "code.ckpt": ({"state_dict": {"student.a": Tied}}, r"holds tests\.commands\.test_export\.Tied at 'student\.a'"),
        "plain.pt": (state, r"plain\.pt is not a Lightning checkpoint: it has no 'state_dict'\. Give a \.ckpt"),
        "other.ckpt": (
            {"state_dict": {"net.student.weight": torch.ones(3), "students.bias": torch.ones(3)}},
            r"other\.ckpt holds no student: none of its weights' names begins with 'student\.'. .*'students\.bias'",
        ),
        "twice.ckpt": (
            {"state_dict": {**state, "student._orig_mod.weight": torch.ones(3)}},
            r"Two entries of the state dict become 'weight'",
        ),
        "number.ckpt": ({"state_dict": {"student.weight": 3}}, r"holds int at 'student\.weight'"),
        "huge.ckpt": (
            {"state_dict": {"student.weight": torch.ones(1).expand(2**40)}},
            r"huge\.ckpt has \d+ bytes, but its weights would take 4398046511104",
        ),
        "tied.ckpt": (
            {"state_dict": dict.fromkeys((f"student.{number}" for number in range(200)), torch.ones(2**14))},
            r"tied\.ckpt has \d+ bytes, but its weights would take 13107200",
        ),
    }


@pytest.mark.parametrize("name", [*bad_checkpoints(Path()), "missing.ckpt", "folder.ckpt", "pipe.ckpt"])
def test_what_is_no_checkpoint(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    message = {
        "folder.ckpt": r"folder\.ckpt is a folder, as sharded .* -m lightning.*consolidate_checkpoint .*folder\.ckpt`",
        "pipe.ckpt": r"pipe\.ckpt is no regular file: give",
        "missing.ckpt": r"missing\.ckpt can't be opened: No such file or directory\. Give a \.ckpt file",
    }.get(name)
    if name == "folder.ckpt":
        path.mkdir()
    elif name == "pipe.ckpt":
        os.mkfifo(path)
    elif message is None:
        content, message = bad_checkpoints(tmp_path)[name]
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
    assert message is not None
    with pytest.raises((SnapshotError, ArgumentError), match=message):
        export_student(path, tmp_path / "new" / "student.pt")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("out", ["student.bin", "student", ".pt", "student.pt/", "folder.pt/student.ckpt"])
def test_an_unknown_suffix(distilled: tuple[Path, nn.Module], tmp_path: Path, out: str) -> None:
    with pytest.raises(ArgumentError, match=r"should end in one of \.safetensors, \.pt, \.pth"):
        export_student(distilled[0], f"{tmp_path}/{out}")
    with pytest.raises(ArgumentError, match="The checkpoint comes first, then the file to write"):
        export_student(tmp_path / "student.pt", distilled[0])
    assert not any(tmp_path.iterdir())


def test_nothing_is_overwritten(distilled: tuple[Path, nn.Module], tmp_path: Path) -> None:
    (tmp_path / "file.pt").write_text("mine")
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "link.pt").symlink_to(tmp_path / "nowhere")
    for name in ("file.pt", "folder.pt", "link.pt"):
        with pytest.raises(ArgumentError, match=rf"{name}' exists and is not overwritten\. Remove it, or"):
            export_student(distilled[0], tmp_path / name)
    assert (tmp_path / "file.pt").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_a_full_disk_leaves_nothing(
    distilled: tuple[Path, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightning_ckptkd.snapshots.folders.local.os.write", full)
    with pytest.raises(SnapshotError, match=r"student\.pt could not be written: No space left on device"):
        export_student(distilled[0], tmp_path / "student.pt")
    assert not any(tmp_path.iterdir())


def test_the_command(
    distilled: tuple[Path, nn.Module],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "student.safetensors"
    main(["export", "--checkpoint", str(distilled[0]), "--out", str(out)])
    count = len(distilled[1].state_dict())
    assert f"The student's {count} tensors, as its state_dict() names them, are in {out}." in capsys.readouterr().out
    for words in ([], [str(distilled[0])]):
        with pytest.raises(ArgumentError, match=r"checkpoint, out: give the checkpoint and the file to write"):
            main(["export", *words])
    monkeypatch.setattr(sys, "argv", ["ckptkd", "export", str(distilled[0]), str(out)])
    with pytest.raises(SystemExit, match=r"^ckptkd: error: out=.*student\.safetensors' exists and is not overwritten"):
        run()
