"""The student as a program: ONNX and torch's exported program, held against the student."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_ckptkd import ArgumentError, SnapshotError, export_network, export_student
from lightning_ckptkd.commands.cli import main
from lightning_ckptkd.commands.exporting import onnx_file
from lightning_ckptkd.commands.run import run as run_command
from tests.projects import Project, digits, write_distill_config

FORMATS = [".onnx", ".pt2"]


def network() -> nn.Sequential:
    first = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
    return nn.Sequential(*first, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 10))


def save(student: nn.Module, root: Path) -> Path:
    """A checkpoint with nothing but a student's weights."""
    path = root / "run.ckpt"
    torch.save({"state_dict": {f"student.{name}": value for name, value in student.state_dict().items()}}, path)
    return path


def run(path: Path, inputs: dict[str, Tensor]) -> Tensor:
    """What somebody makes of the file who has torch or onnxruntime only."""
    if path.suffix == ".pt2":
        found: Tensor = torch.export.load(path).module()(*inputs.values())
        return found.detach()
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_student(tmp_path: Path, suffix: str) -> None:
    """It has the checkpoint's weights, Dropout does nothing, any batch goes, and each part's mode is put back."""
    trained = network()
    for module in trained.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(0.3)
    student = network().train()
    student[1].eval()
    out = tmp_path / "new" / f"student{suffix}"
    x = digits(0, 7).tensors[0]
    program = export_network(save(trained, tmp_path), out, student, x[:2])
    assert [module.training for module in student] == [True, False, *[True] * 5] and student.training
    assert program.files == (str(out),) and [file.name for file in out.parent.iterdir()] == [out.name]
    assert program.sizes == (1, 2, 3)
    assert ("opset" in program.kind) == (suffix == ".onnx")
    assert f"differ from the student's by {program.difference:.2g} at most" in str(program)
    trained.eval()
    for size in (1, 2, 7):
        with torch.no_grad():
            expected = trained(x[:size])
        difference = (run(out, {"input": x[:size]}) - expected).abs().max()
        assert difference < 1e-5 and (suffix != ".pt2" or difference == 0)


def test_weights_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both files are named; they are taken for what they are only together."""
    monkeypatch.setattr(onnx_file, "_ONE_FILE", 0)
    out = tmp_path / "new" / "student.onnx"
    x = digits(0, 3).tensors[0]
    program = export_network(save(network(), tmp_path), out, student := network(), x)
    assert program.files == (str(out), f"{out}.data")
    assert f"in {out} and {out}.data." in str(program)
    with torch.no_grad():
        assert torch.allclose(run(out, {"input": x}), student.eval()(x), atol=1e-5)
    out.unlink()
    with pytest.raises(ArgumentError, match=r"student\.onnx\.data' exists and is not overwritten"):
        export_network(tmp_path / "run.ckpt", out, network(), x)


def test_a_full_disk_leaves_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_ckptkd.snapshots.folders import LocalFolder

    monkeypatch.setattr(onnx_file, "_ONE_FILE", 0)
    write = LocalFolder.write

    def fail(folder: LocalFolder, name: str, *others: Any) -> None:
        if name.endswith(".onnx"):
            raise SnapshotError("No space left on device")
        write(folder, name, *others)

    monkeypatch.setattr(LocalFolder, "write", fail)
    with pytest.raises(SnapshotError, match="No space left"):
        export_network(save(network(), tmp_path), tmp_path / "new" / "s.onnx", network(), digits(0, 2).tensors[0])
    assert not any((tmp_path / "new").iterdir())


class Tokens(nn.Module):
    """Keywords, an output object, sequences of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        features = self.embedding(input_ids)
        if attention_mask is not None:
            features = features * attention_mask[..., None]
        return {"features": features, "logits": self.head(features.mean(1))}


@pytest.mark.parametrize("suffix", FORMATS)
def test_keywords_and_lengths(tmp_path: Path, suffix: str) -> None:
    samples = [
        {"input_ids": torch.randint(20, (3, length)), "attention_mask": torch.ones(3, length)} for length in (5, 8)
    ]
    student = Tokens()
    out = tmp_path / f"student{suffix}"
    program = export_network(save(student, tmp_path), out, student, samples)
    assert "input_ids (N, 5) of int64 and attention_mask (N, 5) of float32" in str(program)
    other = {"input_ids": torch.randint(20, (4, 11)), "attention_mask": torch.ones(4, 11)}
    expected = student(**other)["logits"].detach()
    found = torch.export.load(out).module()(**other) if suffix == ".pt2" else run(out, other)
    assert torch.allclose(found, expected, atol=1e-5)
    assert isinstance(student(**other), dict)


def test_a_lightning_module(tmp_path: Path) -> None:
    student = Project()
    program = export_network(save(student, tmp_path), tmp_path / "s.pt2", student, digits(0, 2).tensors[0])
    assert program.difference == 0


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def test_a_recurrent_network(tmp_path: Path) -> None:
    """torch warns of its weights for no reason; they are in the file."""
    student = Recurrent()
    program = export_network(save(student, tmp_path), tmp_path / "s.pt2", student, torch.randn(2, 5, 4))
    assert program.difference == 0
    loaded = torch.export.load(tmp_path / "s.pt2").state_dict
    assert all(torch.equal(value, loaded[name]) for name, value in student.state_dict().items())


class Changed(nn.Module):
    """A head behind something that is not traced."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.head, self.change = nn.Linear(64, 10), change

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.change(x).flatten(1))


def on_data(x: Tensor) -> Tensor:
    if x.sum() > 0:
        return x
    return -x


def in_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(np.tanh(x.numpy()))


def of_two(x: Tensor) -> Tensor:
    return x.reshape(2, 64)


def eigenvalues(x: Tensor) -> Tensor:
    return torch.linalg.eigvals(x[:, 0]).real.repeat(1, 8)


def noisy(x: Tensor) -> Tensor:
    return x + torch.randn_like(x)


def by_the_batch(x: Tensor) -> Tensor:
    return nn.functional.batch_norm(x.flatten(1), None, None, training=True)  # torch refuses one sample


@pytest.mark.parametrize(
    ("change", "suffix", "message"),
    [
        (
            on_data,
            ".pt2",
            r"can't trace Changed for a batch of any size, at 'if x\.sum\(\) > 0:' .*test_export_network",
        ),
        (
            in_numpy,
            ".onnx",
            r"can't trace Changed .* at 'return torch\.from_numpy\(np\.tanh.*write \.safetensors or \.pt",
        ),
        (of_two, ".pt2", r"can't trace Changed for a batch of any size.*without a fixed number of samples"),
        (eigenvalues, ".onnx", r"no translation of aten\.linalg_eig.*Write \.pt2, which has all.*, or \.safetensors"),
        (
            noisy,
            ".onnx",
            r"As \.onnx the student's outputs differ by .*it was not written.*let it not do so in eval mode",
        ),
        (
            by_the_batch,
            ".pt2",
            r"Changed can't run on a batch of 1: Expected more than 1 value per channel.*\.safetensors and \.pt, which",
        ),
    ],
)
def test_what_is_no_program(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], change: Callable[[Tensor], Tensor], suffix: str, message: str
) -> None:
    """Which operation it is, and the formats that work; which do."""
    checkpoint, x = save(Changed(change), tmp_path), digits(0, 2).tensors[0]
    with pytest.raises(ArgumentError, match=message):
        export_network(checkpoint, tmp_path / "new" / f"s{suffix}", Changed(change), x)
    assert not (tmp_path / "new").exists()
    assert "GraphModule" not in "".join(capfd.readouterr())
    export_student(checkpoint, tmp_path / "s.safetensors")
    if change is eigenvalues:
        export_network(checkpoint, tmp_path / "s.pt2", Changed(change), x)


def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, x, out = save(network(), tmp_path), digits(0, 2).tensors[0], tmp_path / "s.pt2"
    for sample, message in (
        (x[:1], r"has 1 samples.*Give 2 samples or more, as the first dimension"),
        (x[:, :, :2, :2], r"Sequential can't run on the sample, float32 tensor of shape \(2, 1, 2, 2\): .*trained on"),
        (None, r"sample should be a tensor, a tuple, a mapping or a list of such, but is NoneType"),
        ({"y": x}, r"Sequential can't run on the sample, a mapping with 'y'"),
    ):
        with pytest.raises(ArgumentError, match=message):
            export_network(checkpoint, out, network(), sample)
    with pytest.raises(ArgumentError, match=r"Linear does not take the weights of .*Give a network that is made as"):
        export_network(checkpoint, out, nn.Linear(2, 2), x)
    with pytest.raises(ArgumentError, match=r"student: its weights are on meta\. Give student\.cpu\(\)"):
        export_network(checkpoint, out, network().to("meta"), x)
    with pytest.raises(ArgumentError, match=r"end in one of \.onnx, \.pt2\. \.pt is written by export_student"):
        export_network(checkpoint, tmp_path / "s.pt", network(), x)
    with pytest.raises(ArgumentError, match=r"end in one of \.safe.* \.onnx is written by export_network, which takes"):
        export_student(checkpoint, tmp_path / "s.onnx")
    assert not out.exists()
    export_network(checkpoint, out, network(), x)
    with pytest.raises(ArgumentError, match=r"s\.pt2' exists and is not overwritten"):
        export_network(checkpoint, out, network(), x)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with pytest.raises(
        ArgumentError, match=r"needs onnxruntime, which is not installed.*ckptkd\[export\]'.*\.pt2 needs"
    ):
        export_network(checkpoint, tmp_path / "s.onnx", network(), x)


def test_the_command(
    harvest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Network and data come from the config of the distillation, or from words."""
    config = write_distill_config(tmp_path, harvest, "acceleration: none")
    student = Project(channels=2)
    words = ["export", str(save(student, tmp_path))]
    x = digits(0, 3).tensors[0]
    with torch.no_grad():
        expected = student.eval()(x)
    main([*words, str(tmp_path / "a.pt2"), "--fit_config", str(config)])
    main(
        [
            *words,
            str(tmp_path / "b.pt2"),
            "--student",
            "tests.projects.Project",
            "--student.channels",
            "2",
            "--shape",
            "1",
            "8",
            "8",
        ]
    )
    printed = capsys.readouterr().out
    assert printed.count("outputs differ from the student's by 0 at most") == 2
    assert "It takes input 0 (N, 1, 8, 8) of float32, in a batch of any size. Of batches of 1, 32, 33 its" in printed
    for name in "ab":
        assert torch.equal(run(tmp_path / f"{name}.pt2", {"x": x}), expected)
    for others, message in (
        ([], r"student: \.onnx and \.pt2 hold the network, too.*Give --fit_config.*--student CLASS"),
        (["--student", "tests.projects.Project"], r"shape, data: the student is traced on a sample"),
        (["--fit_config", str(config), "--shape", "0", "2"], r"shape=\[0, 2\] should be sizes from 1 up"),
        (["--fit_config", str(config), "--shape", "8", "8"], r"Project can't run on the sample.* such as 3 32 32"),
    ):
        with pytest.raises(ArgumentError, match=message):
            main([*words, str(tmp_path / "c.pt2"), *others])
    fit = tmp_path / "fit.yaml"
    fit.write_text("model: tests.projects.Project\ndata: tests.projects.DigitsData\n")
    with pytest.raises(ArgumentError, match=r"is of Project, which is no DistillationModule\. Give the config\.yaml"):
        main([*words, str(tmp_path / "c.pt2"), "--fit_config", str(fit)])


def test_classes_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network beside the checkpoint is found where one is named, and nothing of the folder where none is."""
    (tmp_path / "own_net.py").write_text("from torch import nn\n\n\nclass Net(nn.Linear):\n    pass\n")
    save(nn.Linear(3, 2), tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    words = ["ckptkd", "export", "run.ckpt"]
    monkeypatch.setattr(sys, "argv", [*words, "s.safetensors"])
    run_command()
    assert str(tmp_path) not in sys.path
    options = ["--student", "own_net.Net", "--student.in_features=3", "--student.out_features=2", "--shape", "3"]
    monkeypatch.setattr(sys, "argv", [*words, "s.pt2", *options])
    run_command()
    assert "s.pt2. It takes input 0 (N, 3) of float32" in capsys.readouterr().out
    sys.modules.pop("own_net")
