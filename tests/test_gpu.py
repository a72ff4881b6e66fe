"""benchmarks/gpu: every stage on the CPU, at toy size, and the parts whose faults a GPU's minutes would not show."""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as transforms

from benchmarks.gpu import pack, packed, paper, runner, tables, worker
from benchmarks.gpu.device_images import PADDING, DeviceImages
from benchmarks.gpu.lease import STAGES, Lease, Results
from benchmarks.gpu.overlap import Overlap, merged, share_covered
from benchmarks.gpu.paper_students import ALONE, Choices, train_students
from benchmarks.gpu.paper_teacher import train_teacher
from benchmarks.gpu.student_stack import WAYS, NetworkStack, accuracies, mean_logits, stacked_loss
from lightning_ckptkd import SnapshotStore
from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.losses.kd import kd_loss
from lightning_ckptkd.zoo import WideResNet

REPOSITORY = Path(__file__).parents[1]
SIDE, HELD_OUT = 16, 50


@pytest.fixture(scope="module")
def small_images(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 real images of 16 x 16 pixels in folders of two classes."""
    root = tmp_path_factory.mktemp("small")
    for file in sorted((image_folder / "train").glob("*/*.png")):
        folder = root / "train" / file.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        Image.open(file).crop((0, 0, SIDE, SIDE)).save(folder / file.name)
    return root


@pytest.fixture(scope="module")
def data(small_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that --data names."""
    root = tmp_path_factory.mktemp("data")
    pack.main(["folder", str(small_images), str(root), "--held_out", str(HELD_OUT)])
    return root


@pytest.fixture(scope="module")
def train(data: Path) -> DeviceImages:
    return paper.on_device(packed.read_packed(data / packed.FILE_NAME), "cpu")["train"]


def network() -> nn.Module:
    return WideResNet(10, 1, 2)


def run(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", str(out), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900)


def test_every_stage_runs_on_the_cpu(tmp_path: Path, data: Path) -> None:
    out = tmp_path / "out"
    arguments = "--device", "cpu", "--minutes", "30", "--data", str(data)  # no time is tested
    done = run(out, *arguments)
    documents = {stage: json.loads((out / f"{stage}.json").read_text()) for stage in STAGES}
    assert done.returncode == 0, done.stdout + done.stderr
    assert {stage: document["state"] for stage, document in documents.items()} == dict.fromkeys(STAGES, "finished")
    assert all(document["about"]["torch"] == torch.__version__ for document in documents.values())
    files = [file for file in out.iterdir() if file.is_file()]
    assert len(files) <= 8

    summary = (out / "summary.md").read_text()
    assert summary.count("not run on a GPU") == len(tables.TARGETS)
    (failed,) = (row for row in documents["cuda_tests"]["rows"] if row["what"] == "checks that failed")
    assert failed["value"] == 0
    assert any("a student under fsdp2 of one device: right" in note for note in documents["cuda_tests"]["notes"])
    seed = documents["paper"]["seeds"]["0"]
    assert {ALONE, "epoch 1", "epoch 3", "half", "full", "MI", "top 3"} <= seed["students"].keys()
    assert len(seed["shares"]["top 3"]) == 3
    left_out = any(note.startswith("soup: left out") for note in documents["paper"]["notes"])
    assert left_out != ("soup" in seed["students"])
    assert all(len(found) == paper.TOY.copies for found in seed["students"].values())

    before = {file.name: file.read_bytes() for file in files if file.suffix == ".json"}
    assert run(out, *arguments).returncode == 0  # nothing is missing, so nothing is run again
    assert {name: (out / name).read_bytes() for name in before} == before
    refused = run(out, "--device", "cuda")
    assert refused.returncode != 0
    assert "holds results of cpu" in refused.stderr


@pytest.mark.parametrize("way", WAYS)
def test_students_at_once_are_those_trained_alone(way: str) -> None:
    sgd: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    networks = [network().double() for _ in range(3)]
    images, labels = torch.randn(3, 8, 3, 8, 8).double(), torch.randint(2, (3, 8))
    teachers = torch.randn(2, 8, 2).double()
    shares = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 0.0]]).double()
    taught = shares.sum(1) > 0
    stack = NetworkStack(networks, "cpu")
    stack.way = way
    optimizer = torch.optim.SGD(stack.parameters.values(), **sgd)
    for step in range(3):
        losses = stacked_loss(
            stack(images[step], train=True), mean_logits(teachers, shares), taught, labels[step], 5.0, 0.5
        )
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
    for place, alone in enumerate(networks):
        alone = copy.deepcopy(alone).train()
        optimizer = torch.optim.SGD(alone.parameters(), **sgd)
        for step in range(3):
            logits = alone(images[step])
            loss = F.cross_entropy(logits, labels[step])
            if taught[place]:
                target = (shares[place][:, None, None] * teachers).sum(0)
                loss = 0.5 * loss + 0.5 * kd_loss(logits, target, 5.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for name, value in [*alone.named_parameters(), *alone.named_buffers()]:
            mine = (stack.parameters | stack.buffers)[name][place]
            torch.testing.assert_close(mine, value.detach(), rtol=1e-6, atol=1e-6)
        found = accuracies(stack, [(images[0], labels[0])])[place]
        assert found == pytest.approx(float((alone.eval()(images[0]).argmax(1) == labels[0]).float().mean()))


def test_bfloat16_is_near() -> None:
    networks, images = [network() for _ in range(2)], torch.randn(8, 3, 8, 8)
    for way in WAYS:
        exact, rounded = NetworkStack(networks, "cpu"), NetworkStack(networks, "cpu", bf16=True)
        exact.way = rounded.way = way
        found, expected = rounded(images, train=True), exact(images, train=True)
        assert found.dtype == torch.float32 and not torch.equal(found, expected)
        torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1)


def test_crops_on_the_device_are_torchvisions() -> None:
    images = torch.randint(256, (3, 8, 8, 3), dtype=torch.uint8)
    mean, std = torch.tensor([100.0, 120.0, 140.0]), torch.tensor([50.0, 60.0, 70.0])
    kept = DeviceImages(images, torch.arange(3), mean, std, "cpu")
    top, left = torch.tensor([0, 3, 8]), torch.tensor([8, 4, 1])
    flipped = torch.tensor([False, True, True])
    found = kept.crops(torch.tensor([2, 0, 1]), top, left, flipped)
    for place, which in enumerate((2, 0, 1)):
        image = transforms.pad(images[which].permute(2, 0, 1), [PADDING] * 4, fill=mean.tolist())
        image = transforms.crop(image, int(top[place]), int(left[place]), 8, 8)
        image = transforms.horizontal_flip(image) if flipped[place] else image
        torch.testing.assert_close(found[place], (image.float() - mean[:, None, None]) / std[:, None, None])
    assert found.is_contiguous(memory_format=torch.channels_last)
    expected = (images.float() - mean) / std
    torch.testing.assert_close(kept.plain(torch.arange(3)), expected.permute(0, 3, 1, 2))


def test_what_is_drawn_depends_on_the_numbers_alone(train: DeviceImages) -> None:
    batches = train.epoch(3, 1, 20, 8)
    which = torch.cat(batches)
    assert [len(batch) for batch in batches] == [8, 8] and len(set(which.tolist())) == 16
    assert torch.equal(which, torch.cat(train.epoch(3, 1, 20, 8)))
    assert not torch.equal(which, torch.cat(train.epoch(4, 1, 20, 8)))
    once, again, other = (train.augmented(which, 1, 3, batch) for batch in (5, 5, 6))
    assert torch.equal(once, again) and not torch.equal(once, other)


def test_packed_images_are_near_and_in_order(small_images: Path, data: Path) -> None:
    found = packed.read_packed(data / packed.FILE_NAME)
    files = sorted((small_images / "train").glob("*/*"))
    assert found.labels.tolist() == [int(file.parent.name[-1]) for file in files]
    originals = numpy.stack([numpy.array(Image.open(file)) for file in files]).astype(int)
    assert abs(found.images.numpy() - originals).mean() < 3
    assert found.about["encoding"].startswith("JPEG of quality 98")
    assert [len(found.of(split)[1]) for split in packed.SPLITS] == [160 - 2 * HELD_OUT, HELD_OUT, HELD_OUT]


def test_no_image_sees_its_neighbours() -> None:
    images = torch.zeros(4, SIDE, SIDE, 3, dtype=torch.uint8)
    images[1::2] = 255
    decoded = numpy.array(Image.open(io.BytesIO(pack.encode(packed.join(images, 2), 60))))
    assert torch.equal(packed.cut(packed.join(images, 3), SIDE)[:4], images)
    assert torch.equal(packed.cut(decoded, SIDE), images)


def test_a_limit_lowers_the_quality_or_is_refused(small_images: Path, data: Path, tmp_path: Path) -> None:
    whole = (data / packed.FILE_NAME).stat().st_size
    path = tmp_path / packed.FILE_NAME
    assert pack.pack_folder(small_images, path, whole // 2, HELD_OUT) <= whole // 2
    assert packed.read_packed(path).about["encoding"] != packed.read_packed(data / packed.FILE_NAME).about["encoding"]
    with pytest.raises(ArgumentError, match="don't fit into 7000 bytes"):
        pack.pack_folder(small_images, path, 7000, HELD_OUT)
    with pytest.raises(ArgumentError, match=r"has 160 images; --held_out 80"):
        pack.pack_folder(small_images, path, whole, 80)


def test_cifar10n_keeps_its_files(tmp_path: Path) -> None:
    pixels = numpy.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=numpy.uint8)
    rows = {"train": ["index,clean,aggregate,random1,worst"], "test": ["index,clean"]}
    for index, image in enumerate(pixels):
        part = "train" if index < 4 else "test"
        (tmp_path / part).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / part / f"{index:05d}.jpg")
        rows[part].append(f"{index},{index},1,2,{index + 3}" if part == "train" else f"{index},{index}")
    for part, lines in rows.items():
        (tmp_path / f"{part}.csv").write_text("\n".join(lines) + "\n")
    pack.main(["cifar10n", str(tmp_path), str(tmp_path / "out"), "--held_out", "1", "--labels", "worst"])
    found = packed.read_packed(tmp_path / "out" / packed.FILE_NAME)
    assert found.labels.tolist() == [3, 4, 5, 6, 4, 5]
    assert sorted(found.split.tolist()) == [0, 0, 0, 1, 2, 2]
    assert numpy.array_equal(found.images[5].numpy(), numpy.array(Image.open(tmp_path / "test" / "00005.jpg")))


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / packed.FILE_NAME).write_bytes(b"no images")
    with pytest.raises(ArgumentError, match="is no file of packed images"):
        packed.read_packed(tmp_path / packed.FILE_NAME)


class Patience:
    """Gives time for so many looks at the clock."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def __call__(self) -> float:
        self.looks -= 1
        return float(self.looks)


def test_an_interrupted_teacher_and_its_students_are_the_uninterrupted_ones(
    tmp_path: Path, train: DeviceImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.gpu.student_stack.WAYS", ("loop",))  # which is faster is timed anew in each run
    sizes: dict[str, Any] = {"epoch_images": 32, "batch_size": 16, "seed": 0}
    weights, students = [], []
    for name, looks in (("at once", [99]), ("in two", [1, 99])):
        folder = tmp_path / name
        folder.mkdir()
        words = [
            train_teacher(network, train, folder, "cpu", Patience(n - 1), epochs=2, every=1, **sizes) for n in looks
        ]
        assert [word is None for word in words] == [False] * (len(looks) == 1) + [True, False] * (len(looks) == 2)
        store = SnapshotStore.open(folder / "harvest")
        assert [snapshot.epoch for snapshot in store.snapshots] == [0, 1]
        weights.append([store.load(snapshot) for snapshot in store.snapshots])
        member = network()
        member.load_state_dict(weights[0][-1])
        choices = Choices({"1": member}, {ALONE: {}, "full": {"1": 1.0}, "half": {"1": 1.0}})
        found = [
            train_students(
                choices, network, train, folder / "students.pt", "cpu", Patience(n), copies=1, epochs=2, **sizes
            )[0]
            for n in looks
        ]
        assert [stack is None for stack in found] == [n == 1 for n in looks]
        assert found[-1] is not None and len(found[-1]) == 2  # half and full are one student here
        students.append(found[-1].state()["parameters"])
        assert not torch.equal(students[-1]["fc.weight"][0], students[-1]["fc.weight"][1])
    for once, twice in zip(*weights, strict=True):
        for key, value in once.items():
            torch.testing.assert_close(twice[key], value)
    for key, value in students[0].items():
        torch.testing.assert_close(students[1][key], value)


def test_values_come_back_by_choice() -> None:
    choices = Choices({"3": network(), "7": network()}, {ALONE: {}, "half": {"3": 1.0}, "MI": {"3": 1.0}})
    assert choices.matrix(2, "cpu").tolist() == [[0, 0], [0, 0], [1, 0], [1, 0]]
    found = choices.by_choice([0.1, 0.2, 0.3, 0.4], 2)
    assert found == {ALONE: [0.1, 0.2], "half": [0.3, 0.4], "MI": [0.3, 0.4]}


def options(out: Path, stages: list[str]) -> argparse.Namespace:
    return argparse.Namespace(out=out, device="cpu", data=None, until=time.monotonic() + 100, stages=stages)


def test_a_stage_that_raises_leaves_its_traceback_and_the_next_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(lease: Lease) -> bool:
        lease.add("before", 1.0)
        raise RuntimeError("an illegal memory access")

    stages = {"harvesting": broken, "selecting": lambda lease: lease.left() > 100}
    monkeypatch.setattr(
        worker.importlib, "import_module", lambda name: SimpleNamespace(run=stages[name.split(".")[-1]])
    )
    asked = options(tmp_path, list(stages))
    assert all(worker.run_stage(stage, asked, {"device": "cpu"}) for stage in stages)
    found = Results.of(tmp_path, "harvesting").document
    assert found["state"] == "failed" and "an illegal memory access" in found["traceback"]
    assert [row["what"] for row in found["rows"]] == ["before"]
    assert Results.of(tmp_path, "selecting").state == "out of time"
    asked.device = "cuda"  # where the fault stays in the process
    assert not worker.run_stage("harvesting", asked, {"device": "a GPU"})
    text = tables.make_summary(tmp_path)
    assert "an illegal memory access" in text and "| paper | not run |" in text


def start(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True)


def test_a_stage_that_hangs_is_killed(tmp_path: Path) -> None:
    now = time.monotonic()
    Results.of(tmp_path, "paper").update(state="running", deadline=now - runner.GRACE - 1)
    process = start("import time; time.sleep(60)")
    assert "took more than its time" in runner._watch(process, tmp_path, now + 60)
    assert process.poll() is not None
    runner._settle(tmp_path, "killed")
    assert Results.of(tmp_path, "paper").document == {"state": "failed", "deadline": now - 16, "traceback": "killed"}
    process = start("import time; time.sleep(60)")
    assert "took more" in runner._watch(process, tmp_path, time.monotonic())  # all minutes are over


def test_a_process_that_dies_is_told(tmp_path: Path) -> None:
    word = runner._watch(start("import os; os.abort()"), tmp_path, time.monotonic() + 60)
    assert word == "the process ended with -6"


def test_a_process_that_can_not_start_is_started_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.sys, "executable", "/bin/false")
    assert runner.main([str(tmp_path), "--device", "cpu", "--minutes", "1"]) == 1
    states = [Results.of(tmp_path, stage).state for stage in STAGES]
    assert states == ["failed", None, None, None, None]
    assert "the process ended with 1" in (tmp_path / "summary.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_told() -> None:
    with pytest.raises(SystemExit, match=r"torch sees no GPU here\. --device cpu runs every stage at toy size"):
        worker.describe("cuda")


def test_time_that_a_stage_leaves_goes_to_the_later_ones() -> None:
    later = list(STAGES)
    assert worker.deadline_of("cuda_tests", later, 0.0, 480.0) == pytest.approx(48)
    assert worker.deadline_of("paper", ["paper"], 100.0, 480.0) == 480
    assert worker.deadline_of("selecting", ["selecting", "paper"], 100.0, 640.0) == pytest.approx(260)
    assert worker.deadline_of("paper", ["paper"], 500.0, 480.0) == 500


@pytest.mark.parametrize(
    ("device", "value", "verdict"),
    [("H100", 0.05, "met"), ("H100", 0.2, "MISSED"), ("cpu", 0.05, "not run on a GPU")],
)
def test_a_target_is_met_missed_or_not_run(tmp_path: Path, device: str, value: float, verdict: str) -> None:
    stage, what, target = tables.TARGETS[0]
    Results.of(tmp_path, stage).update(about={"device": device}, rows=[{"what": what, "value": value, "note": ""}])
    lines = tables.make_summary(tmp_path).splitlines()
    assert f"| {what} | {value:g} | <= {target:g} | {verdict} |" in lines
    assert sum(line.endswith("| not run |") for line in lines) == len(tables.TARGETS) - 1


def test_data_that_are_not_there_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        runner.main([str(tmp_path / "out"), "--data", str(tmp_path)])
    assert "has no packed.safetensors; make it with python -m benchmarks.gpu.pack" in capsys.readouterr().err


def test_what_is_hidden_and_covered() -> None:
    assert merged([(3, 4), (0, 1), (0.5, 2)]) == [(0, 2), (3, 4)]
    assert share_covered([(0, 4), (10, 12)], [(1, 2), (1.5, 3), (11, 20)]) == 0.5
    assert share_covered([], [(0, 1)]) == 0
    in_turn, at_once = Overlap(2.0, 3.0, 5.0, 0.1), Overlap(2.0, 3.0, 3.0, 0.1)
    assert (in_turn.hidden, at_once.hidden) == (0, 1)
