"""Mutation check: each fsync, hash check, lock and guard is taken out in turn; a test must fail for each.

``python -m benchmarks.mutations [--out FILE]`` works on a copy of the package and the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning.pytorch  # noqa: F401  (here for the forked processes, which save its import)
import pytest

from tests.reliability.forking import fork, wait

_PACKAGE = "lightning_ckptkd"
_STORE, _LOCAL, _LOCK = "snapshots/store.py", "snapshots/folders/local.py", "snapshots/folders/lock.py"
_OBJECTS, _REMOTE_LOCK = "snapshots/folders/objects.py", "snapshots/folders/remote_lock.py"
_TESTS = {
    "store": "tests/snapshots/test_store.py",
    "folders": "tests/snapshots/test_folders.py",
    "objects": "tests/snapshots/test_object_stores.py",
    "copy": "tests/snapshots/test_host_copy.py",
    "recorder": "tests/snapshots/test_recorder.py",
    "weights": "tests/snapshots/test_weights.py",
    "pickle": "tests/snapshots/test_inert_pickle.py",
    "archive": "tests/snapshots/test_torch_archive.py",
    "checkpoint": "tests/snapshots/test_checkpoint_file.py",
    "metrics": "tests/snapshots/test_metrics_file.py",
    "takeover": "tests/snapshots/test_takeover.py",
    "harvester": "tests/test_harvester.py",
    "selector": "tests/test_selector.py",
    "ensemble": "tests/teachers/test_ensemble.py",
    "untrusted": "tests/reliability/test_untrusted.py",
    "power loss": "tests/reliability/test_faults.py::test_power_loss",
    "errors": "tests/reliability/test_faults.py::test_every_call_fails",
    "kills": "tests/reliability/test_faults.py::test_killed_at_every_call",
    "ranks": "tests/reliability/test_faults.py::test_one_of_two_ranks_fails",
    "interruptions": "tests/reliability/test_faults.py::test_interrupted_and_resumed",
}


@dataclass(frozen=True)
class Mutation:
    """One guard, what takes it out, and the tests that should notice."""

    guard: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = [
    Mutation("fsync of a file", _LOCAL, "                    os.fsync(descriptor)\n", "", ("power loss",)),
    Mutation("fsync of the folder", _LOCAL, "            _sync(self.path)\n", "", ("power loss",)),
    Mutation("fsync of a new folder's parent", _LOCAL, "                _sync(path.parent)\n", "", ("folders",)),
    Mutation("new file for each write", _LOCAL, "os.O_CREAT | os.O_EXCL", "os.O_CREAT", ("power loss",)),
    Mutation("temporary file goes on failure", _LOCAL, "                    os.unlink(temporary)\n", "                    pass\n", ("store", "errors")),
    Mutation("no link is followed", _LOCAL, "os.O_RDONLY | os.O_NOFOLLOW", "os.O_RDONLY", ("store", "untrusted")),
    Mutation("regular files only", _LOCAL, "if not stat.S_ISREG(status.st_mode):", "if False:", ("store", "untrusted")),
    Mutation("memory error on reading", _LOCAL, "except (OSError, MemoryError) as error:", "except OSError as error:", ("untrusted",)),
    Mutation("plain names on reading", "snapshots/folders/base.py", "if not is_plain_name(name):", "if False:", ("folders",)),
    Mutation("plain names in the manifest", "snapshots/manifest.py", "if not is_plain_name(snapshot.file) or not", "if not", ("store",)),
    Mutation("size on reading", "snapshots/folders/base.py", "if size is not None and found != size:", "if False:", ("store",)),
    Mutation("limit of JSON files", "snapshots/folders/base.py", "limit=_MAX_JSON_BYTES", "limit=None", ("folders",)),
    Mutation("limit of JSON files that are written", "snapshots/folders/base.py", "if len(data) > _MAX_JSON_BYTES:", "if False:", ("metrics",)),
    Mutation("hash of metrics", "snapshots/metrics_file.py", "if hashlib.sha256(data).hexdigest() != self.sha256:", "if False:", ("metrics",)),
    Mutation("plain names of metrics' files", "snapshots/manifest.py", "if not is_plain_name(filed.file) or not", "if not", ("metrics",)),
    Mutation("large metrics have a file", "snapshots/metrics_file.py", "if size > _MAX_INLINE_BYTES or", "if", ("metrics",)),
    Mutation("metrics beyond a sum have a file", "snapshots/metrics_file.py", "or total + size > _MAX_INLINE_TOTAL:", "or False:", ("metrics",)),
    Mutation("hash on loading", _STORE, "if hashlib.sha256(data).hexdigest() != snapshot.sha256:", "if False:", ("store", "untrusted")),
    Mutation("hash of a snapshot made up for", _STORE, "if sha256 not in (None, found):", "if False:", ("harvester",)),
    Mutation("writers only write", _STORE, "if self._held is None:", "if False:", ("store",)),
    Mutation("another run's manifest", _STORE, "if manifest.run_id != run_id:", "if False:", ("store", "folders")),
    Mutation("leftovers are cleaned", _STORE, "            folder.clean(manifest.tag, store._is_leftover)\n", "", ("folders", "kills")),
    Mutation("only the run's own leftovers", _STORE, "and match[1] == self.manifest.tag", "and True", ("folders",)),
    Mutation("only the run's own temporary files", _LOCAL, "temporary[1] == tag", "True", ("folders",)),
    Mutation("state is looked up after a failure", _STORE, "self.manifest = Manifest.read(self.folder)", "pass", ("errors", "store")),
    Mutation("lock between processes", _LOCK, "fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass", ("folders",)),
    Mutation("lock within a process", _LOCK, "if key in _held_here:", "if False:", ("folders",)),
    Mutation("lock is given back", _LOCK, "            _held_here.discard(key)\n", "            pass\n", ("folders",)),
    Mutation("remote upload is whole", "snapshots/folders/remote.py", "if found != needed:", "if False:", ("folders",)),
    Mutation("remote lock", _REMOTE_LOCK, "if owner.run_id != own.run_id:", "if False:", ("objects",)),
    Mutation("remote lock is put conditionally", _OBJECTS, 'data, mode="create", volume', "data, volume", ("objects",)),
    Mutation("remote lock of another stays", _REMOTE_LOCK, "if self._is(own):", "if True:", ("objects",)),
    Mutation("remote lock before an upload", _STORE, "        self.folder.check_lock()\n        if not", "        if not", ("objects",)),
    Mutation("remote lock and run before a manifest", _STORE, "        self._check_own()\n        before", "        before", ("objects",)),
    Mutation("only the run's own manifest is adopted", _STORE, "_read_own_manifest(self.folder, self.manifest.run_id) or self.manifest", "Manifest.read(self.folder)", ("objects",)),
    Mutation("a store without conditional puts is said", "snapshots/folders/remote.py", "if not self._objects.conditional:", "if False:", ("objects",)),
    Mutation("buckets are not made", _OBJECTS, 'self._call("info", self.bucket)', "pass", ("objects",)),
    Mutation("cached listings of info", _OBJECTS, "        self._files.invalidate_cache(self.root)\n        return int", "        return int", ("objects",)),
    Mutation("cached listings of folders", _OBJECTS, "        self._files.invalidate_cache(self.root)\n        return [", "        return [", ("objects",)),
    Mutation("patience after a failure", _OBJECTS, "            self._patient = False\n", "", ("objects",)),
    Mutation("one bound for a snapshot", "snapshots/recorder.py", "with self.store.folder.bounded():", "if True:", ("objects",)),
    Mutation("fp16 overflow", "snapshots/host_copy.py", "        if overflown:\n", "        if False:\n", ("copy",)),
    Mutation("no torch beside training", "snapshots/host_copy.py", "self._memory.numpy().fill(0)", "self._memory.zero_()", ("copy",)),
    Mutation("what can't be stored", "snapshots/layout.py", "        _check_storable(name, value)\n", "        pass\n", ("copy",)),
    Mutation("names that collide", "snapshots/weights.py", "        if name in weights:", "        if False:", ("weights",)),
    Mutation("two copies at most", "snapshots/recorder.py", "_COPIES = 2", "_COPIES = 99", ("recorder",)),
    Mutation("errors of the thread are kept", "snapshots/recorder.py", "except Exception as error:  # it", "except ZeroDivisionError as error:  # it", ("recorder",)),
    Mutation("a checkpoint waits for other weights", "harvester.py", "        recorder.flush()\n        return None\n", "        return None\n", ("harvester",)),
    Mutation("a checkpoint compares the weights", "harvester.py", "if whole and copy.matches(module_weights(module, self.submodule)):", "if whole:", ("harvester",)),
    Mutation("a checkpoint waits for earlier snapshots", "harvester.py", "                    recorder.flush_before(step)\n", "", ("harvester",)),
    Mutation("the last snapshot of a complete run", "harvester.py", 'if self._restored.get("unstored"):', "if False:", ("harvester", "interruptions")),
    Mutation("a killed snapshot is made up for", "harvester.py", "            self._take(pl_module, unstored)", "            pass", ("interruptions",)),
    Mutation("training waits for the last snapshot", "harvester.py", "        recorder.close()\n        self._tell(", "        self._tell(", ("recorder", "harvester")),
    Mutation("metrics before a checkpoint", "harvester.py", "        self._record_metrics(trainer)\n        self._waiting = waiting", "        self._waiting = waiting", ("harvester", "interruptions")),
    Mutation("a snapshot gets its metrics on resume", "harvester.py", '        self._recorder.set_metrics(entry["global_step"], entry["metrics"])\n', "", ("harvester",)),
    Mutation("damage is repaired", _STORE, "if snapshot != old or not self._is_intact(snapshot):", "if snapshot != old:", ("store",)),
    Mutation("a left branch pushes nothing out", _STORE, ".kept([*before, snapshot]), *beyond])", ".kept([*before, snapshot, *beyond])])", ("store",)),
    Mutation("a failed snapshot does not move the position", "snapshots/recorder.py", "                self._position = global_step\n            finally:\n", "            finally:\n                self._position = global_step\n", ("recorder",)),
    Mutation("a rank's error reaches all", "ranks.py", "        if message is not None:", "        if False:", ("ranks",)),
    Mutation("missing ranks are named", "ranks.py", 'return f"{_name(missing)} died or hangs"', 'return "a rank died or hangs"', ("ranks",)),
    Mutation("what a pickle names is not called", "snapshots/inert_pickle.py", "else Call(function, given))", "else __import__(\"pydoc\").locate(function.path)(*given))", ("checkpoint", "untrusted")),
    Mutation("what a pickle names is not imported", "snapshots/inert_pickle.py", "        self._push(Global(f\"{module}.{self._line()}\"))", "        __import__(module)\n        self._push(Global(f\"{module}.{self._line()}\"))", ("pickle", "checkpoint", "untrusted")),
    Mutation("only known opcodes", "snapshots/inert_pickle.py", "            if action is None:\n                raise", "            if action is None:\n                continue\n                raise", ("pickle",)),
    Mutation("a pickle's length", "snapshots/inert_pickle.py", "        if count > self._left:\n", "        if False:\n", ("pickle",)),
    Mutation("a pickle's opcodes are counted", "snapshots/inert_pickle.py", "for _ in range(_MAX_OPCODES):", "while True:", ("pickle",)),
    Mutation("a tensor within its storage", "snapshots/tensor_plan.py", "(plan.numel and (last + 1) * dtype.itemsize > held)", "False", ("archive",)),
    Mutation("a storage as long as it says", "snapshots/torch_archive.py", "if storage.numel() < plan.held:", "if False:", ("archive",)),
    Mutation("a storage's checksum", "snapshots/torch_archive.py", "if member.CRC and zlib", "if False and zlib", ("archive",)),
    Mutation("memory of an archive", "snapshots/torch_archive.py", "        if self._left < 0:", "        if False:", ("archive",)),
    Mutation("shards of one rank", "snapshots/checkpoint_file.py", "if kind.startswith(_SHARDS):", "if False:", ("checkpoint",)),
    Mutation("two runs contradict", "snapshots/runs.py", "        if reason is not None:\n            return one, other, reason", "        if False:\n            return one, other, reason", ("takeover",)),
    Mutation("two runs have other settings", "snapshots/runs.py", "if other.signs.get(title) != value:", "if False:", ("takeover",)),
    Mutation("a folder that became another run's", "snapshots/takeover.py", "        if other is not None:\n", "        if False:\n", ("takeover",)),
    Mutation("batches where no steps are counted", "harvester.py", "            self._clock.count_batches(batches)\n", "            pass\n", ("harvester",)),
    Mutation("a snapshot that is left out is told", "harvester.py", "            self._say_skipped(trainer)\n", "", ("harvester",)),
    Mutation("links among checkpoints", "snapshots/takeover.py", " and not path.is_symlink()", "", ("checkpoint",)),
    Mutation("weights as large as their file", "snapshots/checkpoint_file.py", "        self.check_size(plan_layout(weights).data_bytes)\n", "", ("checkpoint",)),
    Mutation("errors of unpickled objects", "snapshots/checkpoint_file.py", "        except Exception as error:  # what is in", "        except ZeroDivisionError as error:  # what is in", ("checkpoint", "untrusted")),
    Mutation("bounded hyper-parameters", "snapshots/fields.py", "    if depth < 0 or room[0] < 0:", "    if False:", ("untrusted",)),
    Mutation("NaN is not scored", "selecting/snapshot_scorer.py", "item.candidate(excluded_by(weights))", "item.candidate(None)", ("selector",)),
    Mutation("NaN is not ranked", "selecting/features.py", "if not features.finite:", "if False:", ("selector",)),
    Mutation("NaN does not teach", "teachers/ensemble.py", "if name is not None:", "if False:", ("ensemble",)),
    Mutation("damage since the snapshot was scored", "selecting/scoring.py", "            item.verify()", "            pass", ("selector",)),
    Mutation("scores of other samples", "selecting/score_files.py", "[measured, probe.digest(), repr(module)", "[measured, repr(module)", ("selector",)),
    Mutation("scores of other networks", "selecting/score_files.py", "probe.digest(), repr(module)", "probe.digest()", ("selector",)),
]  # fmt: skip


def main() -> None:
    """Run the check and write which test file noticed each mutation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="part of a guard's name; the other results are kept")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/mutations.json"))
    options = parser.parse_args()
    repository = Path(__file__).parent.parent
    results: dict[str, str | None] = {}
    earlier = json.loads(options.out.read_text())["noticed_by"] if options.only and options.out.exists() else {}
    with tempfile.TemporaryDirectory(prefix="ckptkd-") as scratch:
        copy = Path(scratch) / "copy"
        for name in (_PACKAGE, "tests", "configs"):
            shutil.copytree(repository / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(repository / "pyproject.toml", copy)
        for mutation in MUTATIONS:
            if options.only and options.only not in mutation.guard:
                continue
            results[mutation.guard] = _try(copy, mutation)
            print(f"{mutation.guard}: {results[mutation.guard] or 'NOT NOTICED'}", flush=True)
    noticed_by = {**earlier, **results}
    missed = [guard for guard, noticed in noticed_by.items() if noticed is None]
    document = {
        "command": "python -m benchmarks.mutations",
        "cores": os.cpu_count(),
        "mutations": len(noticed_by),
        "noticed": len(noticed_by) - len(missed),
        "not_noticed": missed,
        "noticed_by": noticed_by,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1) + "\n")


def _try(copy: Path, mutation: Mutation) -> str | None:
    """The test file that failed, or None."""
    path = copy / _PACKAGE / mutation.file
    text = path.read_text()
    if text.count(mutation.old) != 1:
        raise SystemExit(f"{mutation.guard}: {mutation.file} holds {mutation.old!r} {text.count(mutation.old)} times")
    path.write_text(text.replace(mutation.old, mutation.new))
    try:
        for name in mutation.tests:
            log = copy / "log.txt"
            status = wait(fork(partial(_run_tests, copy, _TESTS[name], log)), seconds=900)
            if status == pytest.ExitCode.TESTS_FAILED:
                return _TESTS[name]
            if status != pytest.ExitCode.OK:
                raise SystemExit(f"{mutation.guard}: the tests ended with {status}: {log.read_text()[-3000:]}")
    finally:
        path.write_text(text)
    return None


def _run_tests(copy: Path, tests: str, log: Path) -> None:
    """Run tests of the copy in this process, which has torch and Lightning but nothing of the package."""
    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "benchmarks")]:
        del sys.modules[name]
    os.chdir(copy)
    os.environ.update(PYTHONPATH=str(copy), PYTHONDONTWRITEBYTECODE="1")
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(copy)]
    os._exit(int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", tests])))


if __name__ == "__main__":
    main()
