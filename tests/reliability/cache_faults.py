"""A run that fills a cache of teachers' logits, killed anywhere, or met by a second run in the same folder."""

from __future__ import annotations

import os
import random
import signal
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from lightning_ckptkd import CheckpointHarvester, CkptKDError, DistillationModule, TeacherCache
from lightning_ckptkd.teachers import LogitCache
from lightning_ckptkd.teachers.trial import TRIED
from tests.projects import DigitsData, Project, convolutions, digits, make_trainer
from tests.reliability.faults import watched_disk
from tests.reliability.forking import fork, main, wait
from tests.reliability.harvests import scratch_folder

_SAMPLES, _VIEWS, _CHUNK = 80, 2, 32
_CHUNKS = _SAMPLES * _VIEWS // _CHUNK
_BATCH = 12  # no part of a chunk
_KILLS = 3
_TRIED = 3 * TRIED  # what teachers see before they fill: some samples together, and each beside itself


class Moments(Callback):
    """Calls ``at(n)`` ahead of the n-th sample or call to the disk since filling began; counts what teachers saw."""

    def __init__(self, at: Callable[[int], None]) -> None:
        self.count = self.while_filling = self.taught = 0
        self._at, self._active = at, False

    def tick(self) -> None:
        if self._active:
            self.count += 1
            self._at(self.count)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule) and pl_module.teachers is not None
        pl_module.teachers.members[0].register_forward_hook(self._see)
        self._active = True

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.while_filling = self.while_filling or self.count

    def _see(self, _: nn.Module, inputs: tuple[Tensor], __: Tensor) -> None:
        self.taught += len(inputs[0])


class Shifted(Dataset[Any]):
    """Digits, shifted at random; ``before()`` is called ahead of each."""

    def __init__(self, before: Callable[[], None]) -> None:
        self._digits, self._before = digits(0, _SAMPLES), before

    def __len__(self) -> int:
        return _SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self._before()
        image, label = self._digits[index]
        return image.roll(int(torch.randint(-1, 2, ())), dims=2), label


def harvest_some(folder: Path) -> None:
    """A harvest of two epochs."""
    _prepare()
    make_trainer(folder, CheckpointHarvester(folder), max_epochs=2).fit(Project(), DigitsData())


def distil(folder: Path, cache: Path, result: Path, at: Callable[[int], None] = lambda _: None) -> None:
    """A whole run; afterwards ``result`` holds the student, what the teachers saw and how many moments filling had."""
    _prepare()
    LogitCache.open.__func__.__defaults__ = (_CHUNK,)  # type: ignore[attr-defined]
    moments = Moments(at)
    module = DistillationModule(
        nn.Sequential(convolutions(4), nn.Linear(16, 10)),
        Project(),
        folder,
        choice=[1, 0],
        cache=TeacherCache(cache, views=_VIEWS),
        acceleration="none",
    )
    loader = DataLoader(Shifted(moments.tick), _BATCH, shuffle=True)
    with watched_disk(lambda *_: moments.tick()):
        make_trainer(folder, moments, max_epochs=2, limit_val_batches=0).fit(module, loader)
    parts = {"student": module.student.state_dict(), "taught": moments.taught, "moments": moments.while_filling}
    torch.save(parts, result.with_suffix(".tmp"))
    result.with_suffix(".tmp").replace(result)


def cache_trials(count: int, seed: int = 0) -> dict[str, Any]:
    """``count`` caches, whose filling is killed three times each; then one that two runs meet at.

    Raises:
        AssertionError: If a chunk that was there is written again, or cache or student differ from those of a run
            that nobody killed.
    """
    order = random.Random(seed)
    kept = 0
    with scratch_folder() as scratch:
        root = Path(scratch)
        assert wait(fork(lambda: harvest_some(root / "harvest"))) == 0
        run = partial(distil, root / "harvest")
        assert wait(fork(lambda: run(root / "whole", root / "whole.pt"))) == 0
        wanted = torch.load(root / "whole.pt", weights_only=True)
        chunks = _chunks(root / "whole")
        assert len(chunks) == _CHUNKS and wanted["taught"] == _TRIED + _SAMPLES * _VIEWS
        for trial in range(count):
            cache = root / f"cache_{trial}"
            for number in range(_KILLS):
                kept += _kill_once(order, root, cache, by_time=number == 1)
                found = _chunks(cache)
                assert all(found[name][1] == chunks[name][1] for name in found), "a chunk differs"
            _check_end(run, cache, wanted, chunks)
        refusal = _meet(root, wanted, chunks)
    return {"trials": count * _KILLS, "chunks_kept": kept, "refusal": refusal}


def _kill_once(order: random.Random, root: Path, cache: Path, by_time: bool) -> int:
    """Kill one run; the number of chunks that were there before, which must be there afterwards as they were."""
    before = _chunks(cache)
    moments = int(torch.load(root / "whole.pt", weights_only=True)["moments"])
    last = order.randint(1, max(1, moments * (_CHUNKS - len(before)) // _CHUNKS))
    started, result = root / "started", root / "killed.pt"
    started.unlink(missing_ok=True)

    def die(moment: int) -> None:
        started.touch()
        if by_time:
            time.sleep(0.002)
        elif moment == last:
            os.kill(os.getpid(), signal.SIGKILL)

    child = fork(lambda: distil(root / "harvest", cache, result, die))
    if by_time:
        _wait_for(started)
        time.sleep(0.002 * last)
        os.kill(child, signal.SIGKILL)
    assert wait(child) == -signal.SIGKILL, "each sample is drawn again in training, so the run had not ended"
    after = _chunks(cache)
    assert before.items() <= after.items(), "a chunk was written again or is gone"
    return len(before)


def _check_end(run: Callable[[Path, Path], None], cache: Path, wanted: Any, chunks: dict[str, Any]) -> None:
    before, result = _chunks(cache), cache.with_suffix(".pt")
    assert wait(fork(lambda: run(cache, result))) == 0
    found = torch.load(result, weights_only=True)
    missing = _CHUNKS - len(before)
    assert found["taught"] == (_TRIED if missing else 0) + _CHUNK * missing, (
        "the teachers ran for what was missing alone"
    )
    for name, value in wanted["student"].items():
        assert torch.equal(found["student"][name], value), f"{name} of the student differs"
    after = _chunks(cache)
    assert before.items() <= after.items(), "a chunk was written again"
    assert {name: content for name, (_, content) in after.items()} == {
        name: content for name, (_, content) in chunks.items()
    }
    assert {path.name for path in cache.iterdir()} == {"cache.json", "rank-0", *chunks}, "leftovers"


def _meet(root: Path, wanted: Any, chunks: dict[str, Any]) -> str:
    """A second run comes while the first one fills: it is refused, and the first one ends as if alone."""
    cache, started, go = root / "met", root / "met_started", root / "go"

    def pause(moment: int) -> None:
        if moment == 2 * _CHUNK:  # with a chunk on disk and another on its way
            started.touch()
            _wait_for(go)

    first = fork(lambda: distil(root / "harvest", cache, root / "first.pt", pause))
    _wait_for(started)
    before = _chunks(cache)
    assert wait(fork(lambda: _refused(root, cache))) == 0
    assert _chunks(cache) == before
    go.touch()
    assert wait(first) == 0
    found = torch.load(root / "first.pt", weights_only=True)
    assert found["taught"] == _TRIED + _SAMPLES * _VIEWS
    assert all(torch.equal(found["student"][name], value) for name, value in wanted["student"].items())
    _check_end(partial(distil, root / "harvest"), cache, wanted, chunks)
    return (root / "refusal").read_text()


def _refused(root: Path, cache: Path) -> None:
    try:
        distil(root / "harvest", cache, root / "second.pt")
    except CkptKDError as error:
        (root / "refusal").write_text(f"{type(error).__name__}: {error}")
    else:
        raise AssertionError("two runs filled one cache")


def _chunks(cache: Path) -> dict[str, tuple[tuple[int, int], bytes]]:
    """Name to inode and time, and content."""
    found = {}
    for path in cache.glob("chunk-*"):
        status = path.stat()
        found[path.name] = (status.st_ino, status.st_mtime_ns), path.read_bytes()
    return found


def _prepare() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    seed_everything(0, verbose=False)


def _wait_for(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} never came"
        time.sleep(0.001)


if __name__ == "__main__":
    main(cache_trials)
