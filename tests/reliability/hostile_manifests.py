"""Mutated manifests and selections: each is read as it is or ends in an error of this package."""

from __future__ import annotations

import copy
import json
import random
import resource
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lightning_ckptkd import SnapshotError, SnapshotStore
from lightning_ckptkd.snapshots import MANIFEST_NAME, SELECTION_NAME, Candidate, Selection
from lightning_ckptkd.snapshots.seal import sealed
from tests.reliability.corruption import make_harvest
from tests.reliability.forking import main
from tests.reliability.harvests import scratch_folder


def fuzz_manifests(count: int, seed: int = 0) -> dict[str, Any]:
    """Read ``count`` mutations of a manifest or a selection, in an address space that is limited from then on.

    Raises:
        AssertionError: If anything but a SnapshotError came out; names the seed and the trial.
    """
    accepted, slowest = 0, 0.0
    with scratch_folder() as scratch:
        harvest = make_selected_harvest(Path(scratch) / "harvest", seed)
        originals = {name: (harvest / name).read_bytes() for name in (MANIFEST_NAME, SELECTION_NAME)}
        assert is_accepted(harvest)
        before = _peak_memory()
        _limit_address_space()
        for trial in range(count):
            rng = random.Random(f"{seed} {trial}")
            name = rng.choice((MANIFEST_NAME, MANIFEST_NAME, SELECTION_NAME))
            content = rng.choice(_MUTATIONS)(rng, originals[name])
            if name == SELECTION_NAME and rng.random() < 0.8:
                content = _sealed_again(content)  # so that what is behind the seal is tried, too
            (harvest / name).write_bytes(content)
            start = time.perf_counter()
            try:
                accepted += is_accepted(harvest)
            except Exception as error:
                raise AssertionError(f"seed {seed}, trial {trial}, {name}: {content[:4096]!r}") from error
            slowest = max(slowest, time.perf_counter() - start)
            (harvest / name).write_bytes(originals[name])
    return {
        "trials": count,
        "accepted": accepted,
        "refused": count - accepted,
        "slowest_seconds": slowest,
        "memory_growth_bytes": _peak_memory() - before,
    }


def make_selected_harvest(folder: Path, seed: int) -> Path:
    """A harvest with a selection whose fields are all filled."""
    make_harvest(folder, "run", seed)
    store = SnapshotStore.open(folder)
    candidates = tuple(
        Candidate(
            *(snapshot.file, snapshot.sha256, snapshot.epoch, snapshot.global_step),
            *(1.5, 0.5, 0.9, 0.25, 0.75, 1.0),
            rank=rank,
            excluded=None if rank < len(store.snapshots) else "its weights hold NaN",
        )
        for rank, snapshot in enumerate(store.snapshots, 1)
    )
    chosen = tuple(candidate.file for candidate in candidates[:2])
    settings, probe = {"rule": "mi", "num_teachers": 2}, {"samples": 8, "classes": 10}
    Selection(store.manifest.run_id, "mi", store.manifest.created, settings, probe, candidates, chosen).write(store)
    return folder


def is_accepted(harvest: Path) -> bool:
    """Whether a harvest, all of its snapshots and its selection are read without a SnapshotError."""
    try:
        store = SnapshotStore.open(harvest)
    except SnapshotError:
        return False
    accepted = True
    readings: list[Callable[[], object]] = [partial(store.load, snapshot) for snapshot in store.snapshots]
    readings.append(partial(Selection.read, store))
    for read in readings:
        try:
            read()
        except SnapshotError:
            accepted = False
    return accepted


def _sealed_again(content: bytes) -> bytes:
    try:
        return json.dumps(sealed(json.loads(content))).encode()
    except (ValueError, RecursionError, AttributeError):  # what nobody can seal
        return content


def _mutate_bytes(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(changed) + 1)
        stop = min(len(changed), start + rng.choice((1, 2, 8, 64, 512)))
        kind = rng.choice(("flip", "random", "JSON", "delete", "duplicate"))
        if kind == "flip":
            for place in range(start, stop):
                changed[place] ^= 1 << rng.randrange(8)
        elif kind == "random":
            changed[start:start] = rng.randbytes(stop - start)
        elif kind == "JSON":
            changed[start:start] = _hostile_json(rng).encode("utf-8", "surrogatepass")
        elif kind == "delete":
            del changed[start:stop]
        else:
            changed[start:start] = changed[start:stop] * rng.choice((1, 2, 100))
    return bytes(changed)


def _mutate_structure(rng: random.Random, content: bytes) -> bytes:
    document = {"": json.loads(content)}
    texts: dict[str, str] = {}  # what json.dumps can't write, by the string that stands for it

    def text(value: str) -> str:
        stand_in = f"<{len(texts)}>"
        texts[json.dumps(stand_in)] = value
        return stand_in

    for _ in range(rng.randint(1, 3)):
        parent, key = rng.choice(list(_places(document)))
        kind = rng.choice(("replace", "replace", "drop", "add", "repeat", "move"))
        if kind == "replace":
            parent[key] = text(_hostile_json(rng))
        elif kind == "drop" and key != "":
            del parent[key]
        elif kind == "move":
            other, place = rng.choice(list(_places(document)))
            other[place] = copy.deepcopy(parent[key])
        elif isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]) if kind == "repeat" else text(_hostile_json(rng)))
        elif key != "":
            added = json.dumps(key if kind == "repeat" else rng.choice(_TEXTS))
            parent[text(added)] = text(_hostile_json(rng))
    dumped = json.dumps(document[""])
    for stand_in, value in texts.items():
        dumped = dumped.replace(stand_in, value)
    return dumped.encode(rng.choice((*["utf-8"] * 20, "utf-8-sig", "utf-16", "utf-32-be")), "surrogatepass")


def _claim_size(rng: random.Random, content: bytes) -> bytes:
    document = json.loads(content)
    rng.choice(document["snapshots"])["size"] = rng.randrange(2 ** rng.randint(1, 63))
    return json.dumps(document).encode()


Mutation = Callable[[random.Random, bytes], bytes]
_MUTATIONS: tuple[Mutation, ...] = (*[_mutate_bytes] * 4, *[_mutate_structure] * 4, _claim_size)


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Each container and key in a JSON document."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield node, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


_TEXTS = (
    *("", "\0", "\x1b[2J\r\n\u202e", "\ud800", "\u0661\uff11", "__class__", "%s{0}%n", "0" * 64),
    "\N{FULLWIDTH FULL STOP}\N{FULLWIDTH FULL STOP}/\N{GREEK SMALL LETTER OMICRON}",
    *("..", "../outside.safetensors", "/dev/zero", "/proc/self/mem", MANIFEST_NAME, "epoch=0.safetensors\n"),
)
_DEPTHS = (10, 500, 980, 1000, 100_000)
_HOSTILE_JSON: tuple[tuple[str, ...], ...] = (
    ("null", "true", "false", "[]", "{}", "[null, [], {}, -1]"),
    ("0", "-0", "-1", "0.5", "1.0", "1e999", "-1e999", "1e-999", "NaN", "-Infinity"),
    tuple(str(2**bits) for bits in (31, 32, 40, 53, 62, 63, 64)),
    tuple("9" * digits for digits in (20, 400, 4300, 5000)),
    ("-" + "9" * 4300,),
    tuple("[" * depth + "]" * depth for depth in _DEPTHS),
    tuple('{"a":' * depth + "1" + "}" * depth for depth in _DEPTHS),
    tuple("[" * depth for depth in _DEPTHS),
    tuple(json.dumps(text) for text in _TEXTS),
    tuple(json.dumps(text, ensure_ascii=False) for text in _TEXTS),
    tuple(json.dumps(text * 1000) for text in _TEXTS),
    tuple(json.dumps("x" * length) for length in (200, 5000, 200_000)),
    ("[" + "{}," * 5000 + "{}]", "[" + "0," * 50_000 + "0]"),
    ('{"file": "a.safetensors", "file": "../b.safetensors", "size": 1e999}',),
    ("{" + ",".join(f'"{key}": {key}' for key in range(5000)) + "}",),
)


def _hostile_json(rng: random.Random) -> str:
    """The text of one JSON value (or what looks like one) that no harvest holds."""
    return rng.choice(rng.choice(_HOSTILE_JSON))


def _limit_address_space() -> None:
    """Let an allocation fail that claims much, even if it would not use it."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**30, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(fuzz_manifests)
