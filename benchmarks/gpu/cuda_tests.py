"""First stage: that what was tested on the CPU is right on this device, each check a function that asserts.

They need neither pytest nor a data set. Where pytest and scikit-learn are installed, those of the package's own tests
that need CUDA run too.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import seed_everything
from lightning.pytorch.strategies import ModelParallelStrategy

from benchmarks.gpu.bench import Bench, network
from benchmarks.gpu.lease import Lease
from lightning_ckptkd import DistillationModule, MISelector, TeacherCache
from lightning_ckptkd.teachers import Acceleration, TeacherEnsemble, calibrate

OWN_TESTS = ("tests/test_distillation_devices.py::test_half_precision",)


def run(lease: Lease) -> bool:
    """Run all checks; each is written as it ends.

    Args:
        lease: What time there is.

    Returns:
        Whether all were run.

    Raises:
        AssertionError: If some failed; with the traceback of each.
    """
    bench = Bench(lease.device, lease.work)
    failures = []
    for check in CHECKS:
        if lease.left() < 0:
            return False
        name = check.__name__.replace("_", " ")
        start = time.perf_counter()
        try:
            word = check(bench)
        except Exception:  # of whatever kind: its traceback is kept, and the next check runs
            failures.append(f"{name}\n{traceback.format_exc()}")
            word = "FAILED"
        lease.note(f"{name}: {word or 'right'} ({time.perf_counter() - start:.1f} s)")
    lease.add("checks that failed", len(failures), 0, f"of {len(CHECKS)}")
    if failures:
        raise AssertionError("\n\n".join(failures))
    return True


def snapshots_are_the_weights(bench: Bench) -> None:
    """Training goes on at once, and changes the weights in place while they are copied."""
    bench.harvested().check()


def snapshots_under_bf16_mixed(bench: Bench) -> None:
    """The weights stay float32."""
    bench.harvest(bench.folder_for("bf16"), precision="bf16-mixed").check()


def snapshots_under_ddp_of_one_device(bench: Bench) -> None:
    """NCCL on a GPU, gloo on the CPU."""
    with one_process():
        bench.harvest(bench.folder_for("ddp"), strategy="ddp").check()


def a_student_under_ddp_of_one_device(bench: Bench) -> None:
    """Teachers are no part of what DDP sees."""
    with one_process():
        bench.distil({"strategy": "ddp"})


def a_student_under_fsdp2_of_one_device(bench: Bench) -> None:
    """The student as one unit, the teachers whole."""
    with one_process():
        seed_everything(1, verbose=False)
        module = DistillationModule(network(), network(), bench.harvested().folder, choice=[0, 1])
        strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
        bench.fit(module, strategy=strategy)


def teachers_on_each_path_say_the_same(bench: Bench) -> str:
    """BatchNorm folded, channels last, compiled, bfloat16, each against the plain loop in float32."""
    batch, words = bench.batch(), []
    plain = bench.teachers()(batch)
    ways: dict[str, Callable[[TeacherEnsemble], object]] = {
        "channels last": lambda found: found.take(channels_last=True),
        "bf16": lambda found: found.take(bf16=True),
    }
    if bench.device.type == "cuda":
        ways["compiled"] = lambda found: found.compile(batch)
    for name, change in ways.items():
        found = bench.teachers()
        change(found)
        difference = float((found(batch).float() - plain).abs().max() / plain.abs().max())
        words.append(f"{name} differs by {difference:.0e} of the largest logit")
        assert difference < (0.05 if name == "bf16" else 5e-3), words[-1]
    compiled = "" if bench.device.type == "cuda" else "; compiled code is left to the CPU's own tests"
    return ", ".join(words) + compiled


def batch_norm_is_folded_without_a_warning(bench: Bench) -> str:
    """As torch's settings are when nobody changed them: on a GPU convolutions then run in TF32."""
    found = bench.teachers()
    assert found.fold(bench.batch(), 1e-5)[1], "folding was undone: the logits change by more than 1e-5 of the largest"
    return f"torch's float32 convolutions: {torch.backends.cudnn.conv.fp32_precision}"


def calibration_keeps_the_logits(bench: Bench) -> str:
    """Whatever it picks."""
    found, batch = bench.teachers(), bench.batch()
    plain = found(batch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        calibration = calibrate(found, batch, Acceleration(bf16=True))
    difference = float((found(batch).float() - plain).abs().max() / plain.abs().max())
    assert difference < 0.02, f"logits differ by {difference:.0e} of the largest"
    return "; ".join([calibration.describe(found), *(str(warning.message) for warning in caught)])


def a_student_under_bf16_mixed(bench: Bench) -> None:
    """Teachers run as the student does."""
    bench.distil({"precision": "bf16-mixed"})


def a_student_under_16_mixed(bench: Bench) -> str:
    """Its loss is scaled, on CUDA only."""
    if bench.device.type == "cpu":
        return "not on the CPU"
    bench.distil({"precision": "16-mixed"})
    return "right"


def a_compiled_student(bench: Bench) -> str:
    """Checkpoints name its weights as without."""
    if bench.device.type == "cpu":
        return "left to the CPU's own tests"
    module = DistillationModule(torch.compile(network()), network(), bench.harvested().folder, choice=[0])  # type: ignore[arg-type]
    trainer = bench.fit(module)
    path = bench.folder_for("compiled")
    trainer.save_checkpoint(path)
    names = torch.load(path, weights_only=True)["state_dict"].keys()
    assert not any("_orig_mod" in name for name in names)
    return "right"


def a_cache_is_what_the_teachers_say(bench: Bench) -> None:
    """Filled on the device, read from disk: one student of both, but for what fp32 logits round."""
    live = bench.distil(acceleration="none", how={"precision": "32-true"})
    cache = TeacherCache(bench.folder_for("cache"), dtype="fp32")
    cached = bench.distil(acceleration="none", cache=cache)
    for name, value in live.student.state_dict().items():
        torch.testing.assert_close(cached.student.state_dict()[name], value, rtol=1e-2, atol=1e-2)


def a_selection_is_that_of_the_cpu(bench: Bench) -> str:
    """Scores on the device and on the CPU, within a hundredth of a nat."""
    scores = {}
    for device in {"cpu", bench.device.type}:
        folder = bench.harvested().folder
        (folder / "scores.json").unlink(missing_ok=True)
        with contextlib.redirect_stdout(io.StringIO()):
            found = MISelector().select(folder, network(), bench.loader(), device=device, progress=False)
        scores[device] = [(item.input_information, item.label_information) for item in found.candidates]
    torch.testing.assert_close(
        torch.tensor(scores[bench.device.type]), torch.tensor(scores["cpu"]), rtol=1e-2, atol=1e-2
    )
    return f"{len(scores['cpu'])} snapshots"


def deterministic_students_are_equal(bench: Bench) -> None:
    """Two runs of ``Trainer(deterministic=True)``, bit for bit."""
    try:
        first, second = (bench.distil({"deterministic": True}).student.state_dict() for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(second[name], value) for name, value in first.items())


def tests_that_need_cuda(bench: Bench) -> str:
    """The package's own, in this process, so that nothing is imported twice."""
    if any(importlib.util.find_spec(name) is None for name in ("pytest", "sklearn")):
        return "left out: pytest or scikit-learn is not installed"
    import pytest

    root = Path(__file__).parents[2]
    outcomes = Outcomes()
    code = pytest.main(
        [*(str(root / name) for name in OWN_TESTS), "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--assert=plain"],
        [outcomes],
    )
    assert code == 0, "\n".join(outcomes.failures) or f"pytest ended with {code}"
    return ", ".join(f"{count} {word}" for word, count in sorted(outcomes.counts.items()))


class Outcomes:
    """A pytest plugin that counts."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.failures: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count a test once: by its call, or by what kept it from being called."""
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] = self.counts.get(report.outcome, 0) + 1
        if report.failed:
            self.failures.append(str(report.longrepr))


@contextlib.contextmanager
def one_process() -> Iterator[None]:
    """Leave no process group behind."""
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


CHECKS: tuple[Callable[[Bench], str | None], ...] = (
    snapshots_are_the_weights,
    teachers_on_each_path_say_the_same,
    batch_norm_is_folded_without_a_warning,
    calibration_keeps_the_logits,
    a_student_under_bf16_mixed,
    a_student_under_16_mixed,
    a_compiled_student,
    a_cache_is_what_the_teachers_say,
    a_selection_is_that_of_the_cpu,
    snapshots_under_bf16_mixed,
    snapshots_under_ddp_of_one_device,
    a_student_under_ddp_of_one_device,
    a_student_under_fsdp2_of_one_device,
    deterministic_students_are_equal,
    tests_that_need_cuda,
)
