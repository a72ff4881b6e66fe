from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_ckptkd import ArgumentError
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.teachers import Acceleration, TeacherEnsemble, TeacherPath, calibrate, calibration, way_trial
from lightning_ckptkd.zoo import CIFARResNet
from tests.teachers.test_folding import norms, trained

X = Batch(torch.randn(8, 1, 12, 12), torch.zeros(8, dtype=torch.long))


class Hidden(nn.Module):
    """Uses its convolution's output where no hook can see it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 10, 3), nn.BatchNorm2d(10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return (self.norm(y) + y).mean((2, 3))


def ensemble(*members: nn.Module) -> TeacherEnsemble:
    found = members or tuple(trained(CIFARResNet(8, 10, 4, 1)) for _ in range(3))
    return TeacherEnsemble([copy.deepcopy(member) for member in found], [f"t{place}" for place in range(len(found))])


def clock(monkeypatch: pytest.MonkeyPatch, seconds: dict[TeacherPath, float]) -> list[TeacherPath]:
    """Times by table, so that a choice does not hang on this machine; the paths that were timed, in order."""
    timed: list[TeacherPath] = []

    def measure(teachers: TeacherEnsemble, batch: Batch, places: Sequence[int]) -> tuple[float, Tensor]:
        timed.append(teachers.path)
        return seconds[teachers.path] * len(places) / len(teachers), teachers(batch, places)

    monkeypatch.setattr(way_trial, "_run_timed", measure)
    return timed


def test_each_exact_path_gives_the_plain_loops_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    teachers = ensemble(trained(CIFARResNet(8, 10, 4, 1)), trained(CIFARResNet(14, 10, 2, 1)), trained(Hidden()))
    with torch.no_grad():
        plain = torch.stack([member(X.inputs) for member in teachers.members])
    assert torch.equal(teachers(X), plain)
    with pytest.warns(UserWarning, match="can't be folded .* in some teachers, since their logits would change"):
        found = calibrate(teachers, X)
    assert found.path.folded
    assert [norms(member) for member in teachers.members] == [0, 0, 1]
    torch.testing.assert_close(teachers(X), plain, rtol=0, atol=1e-5 * float(plain.abs().max()))
    for channels_last in (True, False):
        teachers.take(channels_last=channels_last)
        torch.testing.assert_close(teachers(X), plain, rtol=0, atol=1e-5 * float(plain.abs().max()))
        torch.testing.assert_close(teachers(X[:3]), plain[:, :3], rtol=0, atol=1e-5 * float(plain.abs().max()))


@pytest.mark.parametrize(("seconds", "kept"), [(0.5, True), (0.79, False), (2.0, False)])
def test_channels_last_stays_where_it_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, seconds: float, kept: bool
) -> None:
    folded = TeacherPath(folded=True)
    last = TeacherPath(folded=True, channels_last=True)
    clock(monkeypatch, {TeacherPath(): 1.0, folded: 0.8, last: seconds})
    teachers = ensemble()
    found = calibrate(teachers, X)
    assert found.path == teachers.path == (last if kept else folded)
    convolution = next(m for m in teachers.members[0].modules() if isinstance(m, nn.Conv2d) and m.in_channels > 1)
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last) is kept
    line = "3 teachers run folded, channels last, 500 ms a batch" if kept else "3 teachers run folded, 800 ms a batch"
    assert found.describe(teachers).startswith(f"{line}; found in ")


@pytest.mark.parametrize("stalled", [0, 1])
def test_a_pass_that_something_else_held_up_decides_nothing(monkeypatch: pytest.MonkeyPatch, stalled: int) -> None:
    table = {TeacherPath(folded=True): 0.020, TeacherPath(folded=True, channels_last=True): 0.010}
    timed = clock(monkeypatch, table)
    measure = way_trial._run_timed

    def hold_up(teachers: TeacherEnsemble, batch: Batch, places: Sequence[int]) -> tuple[float, Tensor]:
        seconds, logits = measure(teachers, batch, places)
        return seconds + 0.09 * (timed[1:].count(timed[-1]) == stalled + 1 and timed[-1].channels_last), logits

    monkeypatch.setattr(way_trial, "_run_timed", hold_up)
    assert calibrate(ensemble(), X).path == TeacherPath(folded=True, channels_last=True)


def test_bfloat16_only_where_it_is_allowed_and_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    folded, half = TeacherPath(folded=True), TeacherPath(folded=True, bf16=True)
    last = TeacherPath(folded=True, channels_last=True)
    table = {TeacherPath(): 1.0, folded: 0.8, last: 0.8, half: 0.4}
    clock(monkeypatch, table)
    monkeypatch.setattr(calibration, "has_instructions", lambda device, dtype: dtype == torch.bfloat16)
    exact = ensemble()
    rough = ensemble(*exact.members)
    assert calibrate(exact, X).path == folded
    assert calibrate(rough, X, Acceleration(bf16=True)).path == half
    difference = float((rough(X).float() - exact(X)).abs().max())
    assert 0 < difference <= 1e-2 * max(1.0, float(exact(X).abs().max()))
    monkeypatch.setattr(calibration, "has_instructions", lambda device, dtype: False)
    without = calibrate(ensemble(), X, Acceleration(bf16=True))
    assert without.path == folded and without.left_out == ("bf16",)
    monkeypatch.setattr(calibration, "has_instructions", lambda device, dtype: dtype == torch.bfloat16)
    clock(monkeypatch, {**table, half: 0.79})
    assert calibrate(ensemble(), X, Acceleration(bf16=True)).path == folded


def test_nothing_is_timed_where_the_path_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = clock(monkeypatch, {})
    teachers, known = ensemble(), TeacherPath(folded=True, channels_last=True)
    assert calibrate(teachers, X, known=known).path == teachers.path == known
    torch.use_deterministic_algorithms(True)
    assert calibrate(ensemble(), X).path == TeacherPath(folded=True)
    plain = ensemble()
    before = plain(X)
    assert calibrate(plain, X, Acceleration("none")).path == TeacherPath()
    assert torch.equal(plain(X), before) and norms(plain.members[0]) > 0
    assert timed == []


def test_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Really compiled, and only batches of that shape."""
    real = way_trial._run_timed

    def measure(teachers: TeacherEnsemble, batch: Batch, places: Sequence[int]) -> tuple[float, Tensor]:
        seconds, logits = real(teachers, batch, places)
        return seconds * (0.01 if teachers.path.compiled else 1), logits

    monkeypatch.setattr(way_trial, "_run_timed", measure)
    teachers = ensemble(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(300, 10)))
    plain = teachers(X)
    assert calibrate(teachers, X, Acceleration("compile")).path.compiled
    ran: list[int] = []
    inner = teachers._compiled[0]
    teachers._compiled[0] = lambda inputs: (ran.append(len(inputs)), inner(inputs))[1]
    torch.testing.assert_close(teachers(X), plain, rtol=0, atol=1e-5 * float(plain.abs().max()))
    torch.testing.assert_close(teachers(X[:3]), plain[:, :3], rtol=0, atol=1e-5 * float(plain.abs().max()))
    assert ran == [8]
    loss = nn.functional.mse_loss(torch.zeros(1, 8, 10, requires_grad=True), teachers(X))
    loss.backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("acceleration", "batches", "tried"), [("auto", 0, False), ("auto", 1000, True), ("compile", 0, True)]
)
def test_when_compiling_is_tried_and_what_if_it_fails(
    monkeypatch: pytest.MonkeyPatch, acceleration: str, batches: int, tried: bool
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no compiler")

    folded, last = TeacherPath(folded=True), TeacherPath(folded=True, channels_last=True)
    clock(monkeypatch, {TeacherPath(): 1.0, folded: 0.8, last: 0.7})
    monkeypatch.setattr(torch, "compile", fails)
    teachers = ensemble()
    before = teachers(X)
    if tried:
        with pytest.warns(UserWarning, match="can't be compiled and run without: RuntimeError: no compiler"):
            found = calibrate(teachers, X, Acceleration(acceleration), batches=batches)
    else:
        found = calibrate(teachers, X, Acceleration(acceleration), batches=batches)
    assert found.path == teachers.path == last
    torch.testing.assert_close(teachers(X), before, rtol=0, atol=1e-5 * float(before.abs().max()))


def test_some_teachers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    teachers = ensemble()
    everything = teachers(X)
    teachers.members[0].forward = None  # type: ignore[assignment]
    assert torch.equal(teachers(X, [2, 1]), everything[[2, 1]])


def test_an_unknown_acceleration() -> None:
    for option in ("fast", None):
        with pytest.raises(ArgumentError, match=rf"acceleration={option!r} is unknown. Near names: "):
            Acceleration.of(option)
    assert Acceleration.of("none") == Acceleration("none", bf16=False)
    assert Acceleration.of(Acceleration(bf16=True)) == Acceleration("auto", bf16=True)
