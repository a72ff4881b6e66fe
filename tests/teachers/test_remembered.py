from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_ckptkd import DistillationModule
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.teachers import (
    Acceleration,
    TeacherEnsemble,
    TeacherPath,
    calibrate,
    calibration,
    remembered,
    way_trial,
)
from lightning_ckptkd.teachers.remembered import KnownWay, WayMemory, cache_folder, way_key
from lightning_ckptkd.zoo import CIFARResNet
from tests.projects import DigitsData, Project, make_trainer
from tests.reliability.forking import fork, wait
from tests.teachers.test_folding import trained

X = Batch(torch.randn(8, 1, 12, 12), torch.zeros(8, dtype=torch.long))
LAST = TeacherPath(folded=True, channels_last=True)
INFO = "lightning.pytorch.utilities.rank_zero"


class Views(nn.Module):
    """Can't be run on a convolution's output that lies with its channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 3, 3), nn.Linear(300, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).view(len(x), 300))  # type: ignore[no-any-return]


class Looks(nn.Module):
    """Gives other logits where its input lies otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 10, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y.mean((2, 3)) + float(not y.is_contiguous())


def ensemble(*members: nn.Module) -> TeacherEnsemble:
    found = members or tuple(trained(CIFARResNet(8, 10, 4, 1)) for _ in range(2))
    return TeacherEnsemble([copy.deepcopy(member) for member in found], [f"t{place}" for place in range(len(found))])


def memory(folder: Path, teachers: TeacherEnsemble) -> WayMemory:
    return WayMemory(folder, way_key(teachers, X, [False, False]))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[TeacherPath]:
    """The paths that were timed; channels last and half precision are faster here, on whatever machine."""
    paths: list[TeacherPath] = []

    def measure(teachers: TeacherEnsemble, batch: Batch, places: Sequence[int]) -> tuple[float, Tensor]:
        paths.append(teachers.path)
        path = teachers.path
        return (0.5 if path.channels_last else 1.0) * (0.5 if path.bf16 or path.fp16 else 1.0), teachers(batch, places)

    monkeypatch.setattr(way_trial, "_run_timed", measure)
    return paths


def test_a_way_is_found_once(tmp_path: Path, timed: list[TeacherPath], caplog: pytest.LogCaptureFixture) -> None:
    teachers = ensemble()
    plain = teachers(X)
    first = calibrate(teachers, X, memory=memory(tmp_path, teachers))
    assert first.path == LAST and LAST in timed
    assert f"remembered in {tmp_path / 'ways.json'}" in first.describe(teachers)
    timed.clear()
    others = ensemble()  # of the same structure, with other weights
    plain = others(X)
    ran: list[TeacherPath] = []
    others.members[0].register_forward_hook(lambda *_: ran.append(others.path))
    found = calibrate(others, X, memory=memory(tmp_path, others))
    assert found.path == others.path == LAST and timed == []
    assert len(ran) == 2, "once as it is, to compare with, and once in the known way"
    assert found.logits is not None
    torch.testing.assert_close(found.logits, plain, rtol=0, atol=1e-5 * float(plain.abs().max()))
    assert f"folded, channels last, 1000 ms a batch; remembered in {tmp_path / 'ways.json'}, checked in " in (
        found.describe(others)
    )
    assert [file.name for file in tmp_path.iterdir()] == ["ways.json"]


def test_what_another_way_may_be_fastest_for(monkeypatch: pytest.MonkeyPatch) -> None:
    member = CIFARResNet(8, 10, 4, 1)
    one = ensemble(member)
    keys = {
        "the same": way_key(ensemble(trained(CIFARResNet(8, 10, 4, 1))), X, [False, False]),
        "network": way_key(ensemble(CIFARResNet(8, 10, 6, 1)), X, [False, False]),
        "number": way_key(ensemble(member, member), X, [False, False]),
        "shape": way_key(one, X[:4], [False, False]),
        "type": way_key(one, X.cast(torch.float64), [False, False]),
        "options": way_key(one, X, [True, False]),
    }
    with torch.autocast("cpu", torch.bfloat16):
        keys["autocast"] = way_key(one, X, [False, False])
    monkeypatch.setattr(remembered, "version", lambda name: "9")
    keys["version"] = way_key(one, X, [False, False])
    monkeypatch.undo()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    keys["threads"] = way_key(one, X, [False, False])
    monkeypatch.undo()
    assert keys.pop("the same") == way_key(one, X, [False, False])
    assert len({*keys.values(), way_key(one, X, [False, False])}) == len(keys) + 1, keys


def test_another_key_has_a_trial_of_its_own(tmp_path: Path, timed: list[TeacherPath]) -> None:
    teachers = ensemble()
    WayMemory(tmp_path, "0" * 64).write(KnownWay(TeacherPath(folded=True), 1.0))
    calibrate(teachers, X, memory=memory(tmp_path, teachers))
    assert timed
    assert len(json.loads((tmp_path / "ways.json").read_text())["ways"]) == 2


def _written(key: str, **change: Any) -> bytes:
    entry = {"ways": ["folded"], "seconds": 1.0, "compiled": None, **change}
    return json.dumps({"format": "lightning_ckptkd.ways", "version": 1, "ways": {key: entry}}).encode()


@pytest.mark.parametrize(
    "content",
    [
        lambda key: b"{",
        lambda key: b"[]",
        lambda key: b"[" * 100_000,
        lambda key: b"\xff\xfe",
        lambda key: b" " * 2**20 + _written(key),
        lambda key: _written(key).replace(b"ckptkd.ways", b"other"),
        lambda key: _written(key).replace(b": 1,", b": 2,"),
        lambda key: _written(key, ways=["folded", "warp"]),
        lambda key: _written(key, ways=["compiled"]),
        lambda key: _written(key, ways={"folded": 1}),
        lambda key: _written(key, seconds="long"),
        lambda key: _written(key, compiled=3),
    ],
)
def test_a_broken_file_is_found_anew(
    tmp_path: Path, timed: list[TeacherPath], caplog: pytest.LogCaptureFixture, content: Any
) -> None:
    teachers = ensemble()
    own = memory(tmp_path, teachers)
    (tmp_path / "ways.json").write_bytes(content(way_key(teachers, X, [False, False])))
    with caplog.at_level("INFO", INFO):
        assert calibrate(teachers, X, memory=own).path == LAST
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("The teachers' fastest way is found anew, what was remembered can't be used: ")
    assert timed and own.read() == KnownWay(LAST, 1.0)


def test_a_link_is_not_followed(tmp_path: Path, timed: list[TeacherPath]) -> None:
    teachers = ensemble()
    own = memory(tmp_path / "cache", teachers)
    (tmp_path / "cache").mkdir()
    other = tmp_path / "other.json"
    other.write_bytes(_written(way_key(teachers, X, [False, False])))
    before = other.read_bytes()
    own.file.symlink_to(other)
    assert calibrate(teachers, X, memory=own).path == LAST
    assert timed and other.read_bytes() == before and not own.file.is_symlink()


@pytest.mark.parametrize(("network", "reason"), [(Views, r"fails \(RuntimeError: view size"), (Looks, "gives other")])
def test_a_known_way_that_no_longer_works(
    tmp_path: Path, timed: list[TeacherPath], caplog: pytest.LogCaptureFixture, network: type[nn.Module], reason: str
) -> None:
    teachers = ensemble(network())
    plain = teachers(X)
    own = memory(tmp_path, teachers)
    own.write(KnownWay(replace(LAST, folded=False), 1.0))
    with caplog.at_level("INFO", INFO):
        found = calibrate(teachers, X, memory=own)
    assert [record for record in caplog.records if "is found anew" in record.getMessage()]
    assert re.search(reason, caplog.records[0].getMessage())
    assert found.path == teachers.path == TeacherPath()
    assert torch.equal(teachers(X), plain)
    assert own.read() == KnownWay(TeacherPath(), 1.0), "and is remembered"


def test_compiled_code_that_no_longer_compiles(
    tmp_path: Path, timed: list[TeacherPath], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", fails)
    teachers = ensemble()
    own = memory(tmp_path, teachers)
    own.write(KnownWay(LAST, 1.0, compiled=True))
    assert calibrate(teachers, X, batches=500, memory=own).path == LAST, "not worth it here, and not tried"
    with pytest.warns(UserWarning, match="can't be compiled and run without: RuntimeError: no compiler"):
        assert calibrate(ensemble(), X, batches=700, memory=own).path == LAST
    assert own.read() == KnownWay(LAST, 1.0, compiled=False)
    assert calibrate(ensemble(), X, batches=700, memory=own).path == LAST, "it is not tried again"


def test_two_processes_that_write_at_once(tmp_path: Path) -> None:
    def write(child: int) -> None:
        for number in range(40):
            WayMemory(tmp_path, f"{child}{number:063d}").write(KnownWay(LAST, 1.0))

    children = [fork(partial(write, child)) for child in range(2)]
    for _ in range(100):
        if (tmp_path / "ways.json").exists():
            assert json.loads((tmp_path / "ways.json").read_text())["ways"]
    assert [wait(child, 60) for child in children] == [0, 0]
    own = [WayMemory(tmp_path, f"{child}{39:063d}").read() for child in range(2)]
    assert KnownWay(LAST, 1.0) in own, "the later one's stands"
    assert [file.name for file in tmp_path.iterdir()] == ["ways.json"]


def test_the_file_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "_ENTRIES", 3)
    for number in range(5):
        WayMemory(tmp_path, f"{number:064d}").write(KnownWay(LAST, 1.0))
    assert WayMemory(tmp_path, f"{0:064d}").read() is None
    assert WayMemory(tmp_path, f"{4:064d}").read() == KnownWay(LAST, 1.0)


def test_a_folder_that_can_not_be_written(
    tmp_path: Path, timed: list[TeacherPath], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    teachers = ensemble()
    with caplog.at_level("INFO", INFO):
        assert calibrate(teachers, X, memory=memory(tmp_path / "file" / "cache", teachers)).path == LAST
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("The teachers' fastest way is not remembered: ")


def test_a_short_training_tries_little(tmp_path: Path, timed: list[TeacherPath]) -> None:
    teachers = ensemble()
    own = memory(tmp_path, teachers)
    assert calibrate(teachers, X, batches=19, memory=own).path == TeacherPath(folded=True)
    assert timed == [] and not own.file.exists()
    assert calibrate(ensemble(), X, batches=20, memory=own).path == LAST


def test_a_way_that_fails_in_its_trial(timed: list[TeacherPath], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", INFO):
        assert calibrate(ensemble(Views()), X).path == TeacherPath()
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("The teachers can't run channels_last: RuntimeError: view size is not compatible")


@pytest.mark.parametrize("half", ["bf16", "fp16"])
def test_the_difference_of_half_precision_is_told(
    tmp_path: Path, timed: list[TeacherPath], monkeypatch: pytest.MonkeyPatch, half: str
) -> None:
    monkeypatch.setattr(calibration, "has_instructions", lambda device, dtype: True)
    option, members = Acceleration(**{half: True}), [trained(CIFARResNet(8, 10, 4, 1)) for _ in range(2)]
    plain = ensemble(*members)(X)
    for _ in range(2):  # found, then remembered
        teachers = ensemble(*members)
        own = WayMemory(tmp_path, way_key(teachers, X, [option.bf16, option.fp16]))
        found = calibrate(teachers, X, option, memory=own)
        assert found.path == replace(LAST, **{half: True})
        difference = (teachers(X).float() - plain).abs()
        largest, mean = float(difference.max()), float(difference.mean())
        assert 0 < mean < largest < 1e-2 * max(1.0, float(plain.abs().max()))
        told = f"; their logits differ from the plain loop's by {largest:.2g} at most, {mean:.2g} on average"
        assert found.describe(teachers).endswith(told)


def test_half_precision_without_instructions(timed: list[TeacherPath], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True})
    teachers = ensemble()
    found = calibrate(teachers, X, Acceleration(bf16=True, fp16=True))
    assert found.path == LAST and not any(path.bf16 or path.fp16 for path in timed)
    assert found.describe(teachers).endswith("; not tried for lack of instructions: bf16, fp16")


def test_half_precision_that_is_no_longer_allowed(
    tmp_path: Path, timed: list[TeacherPath], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a resumed run nor the file brings back what the options do not allow."""
    monkeypatch.setattr(calibration, "has_instructions", lambda device, dtype: True)
    before = replace(LAST, bf16=True)
    teachers, kept = ensemble(), ensemble()
    assert calibrate(kept, X, Acceleration(bf16=True), known=before).path == before
    assert calibrate(teachers, X, known=before).path == teachers.path == LAST
    own = memory(tmp_path, ensemble())
    assert own.write(KnownWay(before, None))
    assert calibrate(ensemble(), X, memory=own).path == LAST
    assert timed == []


def test_a_training_remembers_in_the_users_folder(
    tmp_path: Path, harvest: Path, timed: list[TeacherPath], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(way_trial, "FEW", 0)
    monkeypatch.setenv("LIGHTNING_CKPTKD_CACHE", str(tmp_path / "cache"))
    run, passes = TeacherEnsemble.__call__, []

    def counted(*args: Any) -> Tensor:
        passes.append(args)
        return run(*args)

    monkeypatch.setattr(TeacherEnsemble, "__call__", counted)
    for _ in range(2):
        timed.clear()
        passes.clear()
        module = DistillationModule(Project(), Project(), harvest, choice=[1, 3])
        make_trainer(tmp_path, max_steps=3, limit_val_batches=0).fit(module, DigitsData())
        assert module.teachers is not None and module.teachers.path == LAST
    assert (tmp_path / "cache" / "ways.json").exists()
    assert timed == [] and len(passes) == 2, "the check's logits teach in the first step"


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder({"LIGHTNING_CKPTKD_CACHE": "/a/b", "XDG_CACHE_HOME": "/c"}) == Path("/a/b")
    assert cache_folder({"LIGHTNING_CKPTKD_CACHE": "~/b"}) == Path.home() / "b"
    assert cache_folder({"LIGHTNING_CKPTKD_CACHE": "", "XDG_CACHE_HOME": "/c"}) is None
    assert cache_folder({"XDG_CACHE_HOME": "/c"}) == Path("/c/lightning_ckptkd")
    assert cache_folder({"XDG_CACHE_HOME": "relative"}) == cache_folder({})
    for platform, place in (("linux", ".cache"), ("darwin", "Library/Caches"), ("win32", "AppData/Local")):
        monkeypatch.setattr(remembered.sys, "platform", platform)
        assert cache_folder({}) == Path.home() / place / "lightning_ckptkd"
