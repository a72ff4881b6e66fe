"""Damage to snapshot files: each must be found before a tensor is made, and only where it is.

``python -m tests.reliability.corruption damage|clean COUNT SEED`` runs more trials than the tests do.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import safetensors
import torch
from torch import Tensor

from lightning_ckptkd import SnapshotError, SnapshotStore
from lightning_ckptkd.snapshots import Snapshot
from tests.reliability.harvests import scratch_folder

Weights = dict[str, Tensor]

_WIDTHS = (16, 16, 48, 48)  # of each size two, so that a swap may leave the sizes as they were


@dataclass(frozen=True)
class Harvest:
    """A harvest on disk, and what its snapshots were made of.

    Attributes:
        folder: The harvest's folder.
        weights: Name of a snapshot's file to its weights.
    """

    folder: Path
    weights: dict[str, Weights]

    def check(self, store: SnapshotStore, snapshot: Snapshot) -> None:
        """Load a snapshot and compare it with its weights, bit for bit."""
        loaded, expected = store.load(snapshot), self.weights[snapshot.file]
        assert loaded.keys() == expected.keys(), snapshot.file
        for name, value in expected.items():
            assert (loaded[name].dtype, loaded[name].shape) == (value.dtype, value.shape), (snapshot.file, name)
            assert torch.equal(_bits(loaded[name]), _bits(value)), (snapshot.file, name)
        assert loaded["head.weight"] is loaded["embedding.weight"], f"{snapshot.file}: the tie is lost"


def make_harvest(folder: Path, run_id: str, seed: int) -> Harvest:
    """Write a harvest of four snapshots, of 4 and 28 kB."""
    weights: dict[str, Weights] = {}
    with SnapshotStore.create(folder, run_id, {"class_path": "project.Net", "hyper_parameters": {"lr": 0.1}}) as store:
        for epoch, width in enumerate(_WIDTHS):
            values = _make_weights(width, torch.Generator().manual_seed(len(_WIDTHS) * seed + epoch))
            metrics = {"val_loss": 1 / (epoch + 1), "val_acc": None}
            snapshot = store.commit(
                values, epoch=epoch, global_step=10 * epoch + 10, learning_rate=0.1, metrics=metrics
            )
            weights[snapshot.file] = values
    return Harvest(folder, weights)


def damage_trials(folder: Path, count: int, seed: int) -> int:
    """Damage a harvest in ``count`` ways, one at a time.

    Returns:
        How many were found, which is all.

    Raises:
        AssertionError: If one was missed, was found too late, or harmed another snapshot; names seed and kind.
    """
    harvest = make_harvest(folder / "harvest", "run", seed)
    other = make_harvest(folder / "other", "other", seed + 1)
    detected = 0
    for trial in range(count):
        rng = random.Random(f"{seed} {trial}")
        kind, damage = rng.choice(_DAMAGES)
        originals = {name: (harvest.folder / name).read_bytes() for name in harvest.weights}
        changed = damage(rng, originals, [(other.folder / name).read_bytes() for name in other.weights])
        for name, content in changed.items():
            assert content != originals[name], f"seed {seed}, trial {trial}: {kind} changed nothing"
            (harvest.folder / name).write_bytes(content)
        try:
            _check_damaged(harvest, set(changed))
        except Exception as error:
            raise AssertionError(f"seed {seed}, trial {trial}, {kind} of {sorted(changed)}: {error!r}") from error
        for name in changed:
            (harvest.folder / name).write_bytes(originals[name])
        detected += 1
    return detected


def clean_trials(folder: Path, count: int, seed: int) -> int:
    """Load undamaged snapshots ``count`` times.

    Returns:
        How many were loaded as they were written, which is all.

    Raises:
        AssertionError: If an undamaged snapshot was refused or came back changed.
    """
    harvest = make_harvest(folder / "harvest", "run", seed)
    rng = random.Random(seed)
    for trial in range(count):
        store = SnapshotStore.open(harvest.folder)
        snapshot = rng.choice(store.snapshots)
        try:
            harvest.check(store, snapshot)
        except SnapshotError as error:
            raise AssertionError(f"seed {seed}, trial {trial}: a false alarm") from error
    return count


def _check_damaged(harvest: Harvest, damaged: set[str]) -> None:
    store = SnapshotStore.open(harvest.folder)
    for snapshot in store.snapshots:
        if snapshot.file not in damaged:
            harvest.check(store, snapshot)
            continue
        with mock.patch.object(safetensors, "deserialize", wraps=safetensors.deserialize) as made:
            try:
                store.load(snapshot)
            except SnapshotError:
                pass
            else:
                raise AssertionError(f"{snapshot.file} was loaded")
        assert not made.called, f"{snapshot.file} was refused only after its tensors were made"


Contents = dict[str, bytes]
Damage = Callable[[random.Random, Contents, list[bytes]], Contents]


def _flip_bit(rng: random.Random, files: Contents, _: list[bytes]) -> Contents:
    name = rng.choice(list(files))
    content = bytearray(files[name])
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return {name: bytes(content)}


def _truncate(rng: random.Random, files: Contents, _: list[bytes]) -> Contents:
    name = rng.choice(list(files))
    return {name: files[name][: rng.randrange(len(files[name]))]}


def _extend(rng: random.Random, files: Contents, _: list[bytes]) -> Contents:
    name = rng.choice(list(files))
    return {name: files[name] + rng.randbytes(rng.randint(1, 4096))}


def _zero_range(rng: random.Random, files: Contents, _: list[bytes]) -> Contents:
    name = rng.choice(list(files))
    content = files[name]
    while True:
        start, length = rng.randrange(len(content)), rng.randint(1, 4096)
        if any(content[start : start + length]):
            zeros = bytes(len(content[start : start + length]))
            return {name: content[:start] + zeros + content[start + length :]}


def _swap(rng: random.Random, files: Contents, _: list[bytes]) -> Contents:
    one, two = rng.sample(list(files), 2)
    return {one: files[two], two: files[one]}


def _replace_by_another_run(rng: random.Random, files: Contents, others: list[bytes]) -> Contents:
    name = rng.choice(list(files))
    return {name: rng.choice([other for other in others if len(other) == len(files[name])])}


_DAMAGES: tuple[tuple[str, Damage], ...] = (
    ("bit flip", _flip_bit),
    ("truncation", _truncate),
    ("extension", _extend),
    ("zeroed range", _zero_range),
    ("swap", _swap),
    ("another run's file", _replace_by_another_run),
)


def _make_weights(width: int, generator: torch.Generator) -> Weights:
    embedding = torch.randn(width, width, generator=generator)
    return {
        "embedding.weight": embedding,
        "head.weight": embedding,
        "double": torch.randn(width, width // 2, generator=generator, dtype=torch.float64),
        "half": torch.randn(width, width, generator=generator).half(),
        "bfloat": torch.randn(3, width, width // 4, generator=generator).bfloat16(),
        "float8": torch.randn(width, 4, generator=generator).to(torch.float8_e4m3fn),
        "not finite": torch.tensor([float("nan"), float("inf"), -0.0]),
        "norm.num_batches_tracked": torch.randint(10**6, (), generator=generator),
        "int32": torch.randint(-100, 100, (width,), generator=generator, dtype=torch.int32),
        "bytes": torch.randint(256, (width, 7), generator=generator, dtype=torch.uint8),
        "mask": torch.rand(width, 5, generator=generator) < 0.5,
        "empty": torch.empty(0, width),
    }


def _bits(value: Tensor) -> Tensor:
    return value.contiguous().flatten().view(torch.uint8)


def main(trials: str, count: int, seed: int) -> None:
    """Run trials in a temporary folder and print what came of them as JSON."""
    run, outcome = {"damage": (damage_trials, "detected"), "clean": (clean_trials, "clean")}[trials]
    with scratch_folder() as folder:
        print(json.dumps({"trials": count, outcome: run(Path(folder), count, seed)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
