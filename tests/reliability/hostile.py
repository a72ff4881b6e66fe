"""Hostile harvests and checkpoints: what they may cause is an error of this package's own, soon, and nothing else.

An audit hook can't be removed, so the trials that need one run in a process of their own:
``python -m tests.reliability.hostile manifests|names|checkpoints COUNT SEED [FOLDER]``.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import copy
import ctypes
import functools
import hashlib
import importlib
import io
import json
import marshal
import operator
import os
import pickle
import random
import resource
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import timeit
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.jit.unsupported_tensor_ops
import torch.utils.collect_env

from lightning_ckptkd import ArgumentError, CkptKDError, SnapshotError, SnapshotStore, harvest_checkpoints
from lightning_ckptkd.snapshots import MANIFEST_NAME, SELECTION_NAME, Candidate, Selection, Snapshot
from tests.reliability.corruption import make_harvest
from tests.reliability.forking import run_trials

_ADDRESS_SPACE = 2**30


@dataclass(frozen=True)
class FuzzResult:
    """What came of mutated manifests and selections.

    Attributes:
        accepted: How many were read without an error.
        refused: How many ended in an error of this package.
        slowest_seconds: The longest that one took.
        memory_growth_bytes: By how much the peak of resident memory grew over all.
    """

    accepted: int
    refused: int
    slowest_seconds: float
    memory_growth_bytes: int


@dataclass(frozen=True)
class CheckpointResult:
    """What came of hostile checkpoints.

    Attributes:
        refused: How many ended in an error of this package without any effect.
        executing: How many of them run code where they are read without the guard.
        slowest_seconds: The longest that a refusal took.
    """

    refused: int
    executing: int
    slowest_seconds: float


def fuzz_manifests(folder: Path, count: int, seed: int) -> FuzzResult:
    """Read ``count`` mutations of a manifest or a selection.

    Raises:
        AssertionError: If anything but a CkptKDError came out; names the seed and the trial.
    """
    harvest = _make_selected_harvest(folder / "harvest", seed)
    originals = {name: (harvest / name).read_bytes() for name in (MANIFEST_NAME, SELECTION_NAME)}
    assert _is_accepted(harvest)
    before = _peak_memory()
    accepted, slowest = 0, 0.0
    with _limited_address_space():
        for trial in range(count):
            rng = random.Random(f"{seed} {trial}")
            name = rng.choice((MANIFEST_NAME, MANIFEST_NAME, SELECTION_NAME))
            content = rng.choice(_MUTATIONS)(rng, originals[name])
            (harvest / name).write_bytes(content)
            start = time.perf_counter()
            try:
                accepted += _is_accepted(harvest)
            except Exception as error:
                raise AssertionError(f"seed {seed}, trial {trial}, {name}: {content[:4096]!r}") from error
            slowest = max(slowest, time.perf_counter() - start)
            (harvest / name).write_bytes(originals[name])
    return FuzzResult(accepted, count - accepted, slowest, _peak_memory() - before)


def hostile_names(folder: Path, count: int, seed: int) -> int:
    """Read ``count`` harvests with names that lead elsewhere, or with links and other things in place of files.

    Returns:
        How many were refused without opening anything outside of the harvest's folder, which is all.

    Raises:
        AssertionError: If one was not; names the trial.
    """
    refused: int = run_trials("hostile", "names", count, seed, folder)["refused"]
    return refused


def hostile_checkpoints(count: int, seed: int) -> CheckpointResult:
    """Take over ``count`` different hostile checkpoints, then load those that hold code without the guard.

    Raises:
        AssertionError: If one was not refused, or did anything but open itself, or if code did not run without the
            guard; names the trial.
    """
    return CheckpointResult(**run_trials("hostile", "checkpoints", count, seed))


def _make_selected_harvest(folder: Path, seed: int) -> Path:
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


def _is_accepted(harvest: Path) -> bool:
    try:
        store = SnapshotStore.open(harvest)
    except CkptKDError:
        return False
    accepted = True
    reads: list[Callable[[], object]] = [functools.partial(store.load, snapshot) for snapshot in store.snapshots]
    reads.append(functools.partial(Selection.read, store))
    for read in reads:
        try:
            read()
        except CkptKDError:
            accepted = False
    return accepted


def _mutate_bytes(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(changed) + 1)
        stop = min(len(changed), start + rng.choice((1, 2, 8, 64, 512)))
        kind = rng.choice(("flip", "insert", "delete", "duplicate"))
        if kind == "flip":
            for place in range(start, stop):
                changed[place] ^= 1 << rng.randrange(8)
        elif kind == "insert":
            changed[start:start] = rng.choice(
                (rng.randbytes(stop - start), _hostile_json(rng).encode("utf-8", "surrogatepass"))
            )
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
            added = json.dumps(key) if kind == "repeat" else json.dumps(rng.choice(_TEXTS))
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
    "",
    "\0",
    "\x1b[2J\r\n\u202e",
    "\ud800",
    "\u0661\uff11",
    "\N{FULLWIDTH FULL STOP}\N{FULLWIDTH FULL STOP}/\N{GREEK SMALL LETTER OMICRON}",
    "..",
    "../outside.safetensors",
    "/dev/zero",
    "/proc/self/mem",
    "manifest.json",
    "epoch=0.safetensors\n",
    "__class__",
    "%s{0}%n",
    "0" * 64,
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


@contextlib.contextmanager
def _limited_address_space() -> Iterator[None]:
    """Let an allocation fail that claims much, even if it would not use it."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + _ADDRESS_SPACE, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class _Watch:
    """Notes the audit events that it is told to, while it is entered.

    Args:
        describe: An event and its arguments to what is noted of it, or None.
    """

    def __init__(self, describe: Callable[[str, tuple[Any, ...]], str | None]) -> None:
        self.noted: list[str] = []
        self._describe = describe
        self._active = False
        sys.addaudithook(self._hook)

    def __enter__(self) -> None:
        self.noted = []
        self._active = True

    def __exit__(self, *_: object) -> None:
        self._active = False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._active:
            return
        self._active = False
        noted = self._describe(event, arguments)
        if noted is not None:
            self.noted.append(noted)
        self._active = True


def _names(folder: Path, count: int, seed: int) -> dict[str, Any]:
    original = _make_selected_harvest(folder / "original", seed)
    harvest, outside = folder / "harvest", folder / "outside"
    outside.mkdir()
    shutil.copytree(original, outside / "harvest")
    watch = _Watch(functools.partial(_open_outside, harvest.resolve()))
    refused = 0
    for trial in range(count):
        rng = random.Random(f"{seed} {trial}")
        shutil.rmtree(harvest, ignore_errors=True)
        shutil.copytree(original, harvest)
        kind, which = trial % len(_ATTACKS), trial // len(_ATTACKS)
        read = _ATTACKS[kind](harvest, outside / "harvest", which, rng)
        try:
            with watch:
                read()
        except SnapshotError:
            refused += 1
        else:
            raise AssertionError(f"seed {seed}, trial {trial}, {_ATTACKS[kind].__name__} {which} was read")
        assert not watch.noted, f"seed {seed}, trial {trial}, {_ATTACKS[kind].__name__} {which}: {watch.noted}"
    (harvest / "link").symlink_to(outside / "harvest" / MANIFEST_NAME)
    for leads_outside in (harvest / "link", harvest / ".." / "outside" / "harvest" / MANIFEST_NAME):
        with watch:
            leads_outside.read_bytes()
        assert watch.noted, f"the watch does not see that {leads_outside} is opened"
    return {"refused": refused}


def _open_outside(folder: Path, event: str, arguments: tuple[Any, ...]) -> str | None:
    """The path of a file that is opened outside of a folder, or through a link."""
    if event != "open":
        return None
    path, _, flags = arguments
    if isinstance(path, int):
        return None
    path = Path(os.fsdecode(path))
    follows = not flags & os.O_NOFOLLOW and path.is_symlink()
    return None if path.parent.resolve() == folder and not follows else str(path)


def _name_in_manifest(harvest: Path, outside: Path, which: int, rng: random.Random) -> Callable[[], object]:
    document = json.loads((harvest / MANIFEST_NAME).read_text())
    snapshot = rng.choice(document["snapshots"])
    snapshot["file"] = _bad_name(snapshot["file"], outside, which, rng)
    (harvest / MANIFEST_NAME).write_text(json.dumps(document))
    return functools.partial(_load_all, harvest)


def _name_in_selection(harvest: Path, outside: Path, which: int, rng: random.Random) -> Callable[[], object]:
    document = json.loads((harvest / SELECTION_NAME).read_text())
    candidate = rng.choice(document["snapshots"])
    candidate["file"] = _bad_name(candidate["file"], outside, which, rng)
    document["chosen"] = [candidate["file"]]
    (harvest / SELECTION_NAME).write_text(json.dumps(document))
    return functools.partial(_read_selection, harvest)


def _thing_as_snapshot(harvest: Path, outside: Path, which: int, rng: random.Random) -> Callable[[], object]:
    store = SnapshotStore.open(harvest)
    snapshot: Snapshot = rng.choice(store.snapshots)
    _put_thing(harvest / snapshot.file, outside, which)
    return functools.partial(store.load, snapshot)


def _thing_as_manifest(harvest: Path, outside: Path, which: int, _: random.Random) -> Callable[[], object]:
    _put_thing(harvest / MANIFEST_NAME, outside, which)
    return functools.partial(_load_all, harvest)


def _thing_as_selection(harvest: Path, outside: Path, which: int, _: random.Random) -> Callable[[], object]:
    _put_thing(harvest / SELECTION_NAME, outside, which)
    return functools.partial(_read_selection, harvest)


_ATTACKS = (_name_in_manifest, _name_in_selection, _thing_as_snapshot, _thing_as_manifest, _thing_as_selection)


def _load_all(harvest: Path) -> None:
    store = SnapshotStore.open(harvest)
    for snapshot in store.snapshots:
        store.load(snapshot)


def _read_selection(harvest: Path) -> None:
    Selection.read(SnapshotStore.open(harvest))


def _bad_name(file: str, outside: Path, which: int, rng: random.Random) -> str:
    """A name that is no plain one; many lead to a copy of the snapshot outside, whose size and hash would be right."""
    up = "../" * rng.randint(1, 8)
    names = (
        f"../outside/harvest/{file}",
        f"{outside}/{file}",
        f"./../outside/harvest/{file}",
        f"{file}/../../outside/harvest/{file}",
        f"./{file}",
        f"/{outside}/{file}",
        f"file://{outside}/{file}",
        f"~/{file}",
        f"{up}etc/passwd",
        f"{up}dev/zero.safetensors",
        f"..\\outside\\harvest\\{file}",
        f"C:\\{file}",
        f"%2e%2e%2foutside%2fharvest%2f{file}",
        f"..%c0%af{file}",
        f"{file}\0",
        f"{file[:-12]}\0.safetensors",
        f"{file}\n",
        f"\n{file}",
        f"{file[:5]}\r{file[5:]}",
        f"{file} ",
        f".{file}",
        f"-{file}",
        "",
        ".",
        "..",
        ".lock",
        MANIFEST_NAME,
        "a" * rng.randint(190, 5000) + ".safetensors",
        "../" * 2000 + file,
        file.replace("e", "\N{CYRILLIC SMALL LETTER IE}", 1),
        file.replace("=", "\N{FULLWIDTH EQUALS SIGN}", 1),
        file.replace("0", "\N{ARABIC-INDIC DIGIT ZERO}", 1),
        f"\N{TWO DOT LEADER}/outside/harvest/{file}",
        f"\N{FULLWIDTH FULL STOP}\N{FULLWIDTH FULL STOP}\N{FULLWIDTH SOLIDUS}{file}",
        f"\N{RIGHT-TO-LEFT OVERRIDE}{file}",
        f"\ud800{file}",
        f"{file};true",
        f"$({file})",
    )
    return names[which % len(names)]


def _put_thing(path: Path, outside: Path, which: int) -> None:
    """Put a link or another thing that is no regular file in place of a file."""
    beside = path.with_name("beside")
    path.rename(beside)
    things: tuple[Callable[[], object], ...] = (
        lambda: path.symlink_to(outside / path.name),
        lambda: path.symlink_to(os.path.relpath(outside / path.name, path.parent)),
        lambda: path.symlink_to(beside.name),
        lambda: path.symlink_to(outside),
        lambda: path.symlink_to(path.parent),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to("/dev/stdin"),
        lambda: path.symlink_to("/proc/self/environ"),
        lambda: path.symlink_to(path.name),
        lambda: path.symlink_to("nowhere"),
        lambda: os.mkfifo(path),
        lambda: os.mknod(path, stat.S_IFSOCK | 0o600),
        path.mkdir,
    )
    things[which % len(things)]()


@dataclass(frozen=True)
class _Hostile:
    """One hostile checkpoint.

    Attributes:
        kind: What it is, for messages.
        content: The file.
        event: How the audit event of the code in it begins; None where there is none.
    """

    kind: str
    content: bytes
    event: str | None = None


def _checkpoints(folder: Path, count: int, seed: int) -> dict[str, Any]:
    source, target, mark = folder / "checkpoints", folder / "harvest", folder / "mark"
    source.mkdir()
    path = source / "hostile.ckpt"
    torch.save(_document({"a": torch.ones(2)}), path)
    valid = path.read_bytes()
    harvest_checkpoints(source, folder / "warm", progress=False)  # what is imported on first use is by now
    watch = _Watch(_Effects(path))
    slowest, hostiles = 0.0, list(_draw_checkpoints(count, seed, valid, mark))
    for trial, hostile in enumerate(hostiles):
        path.write_bytes(hostile.content)
        start = time.perf_counter()
        try:
            with watch:
                harvest_checkpoints(source, target, progress=False)
        except (SnapshotError, ArgumentError):
            slowest = max(slowest, time.perf_counter() - start)
        except Exception as error:
            raise AssertionError(f"seed {seed}, trial {trial}, {hostile.kind}: {error!r}") from error
        else:
            raise AssertionError(f"seed {seed}, trial {trial}, {hostile.kind} was taken over")
        effects = [*watch.noted, *(str(made) for made in (mark, target) if made.exists())]
        assert not effects, f"seed {seed}, trial {trial}, {hostile.kind}: {effects}"
    executing = [hostile for hostile in hostiles if hostile.event is not None]
    for hostile in executing:
        path.write_bytes(hostile.content)
        _forget(mark)
        with watch:
            _load_unguarded(path)
        executed = any(f"{noted} ".startswith(f"{hostile.event} ") for noted in watch.noted)
        assert executed, f"seed {seed}: {hostile.kind} ran nothing without the guard: {watch.noted}"
    path.write_bytes(valid)
    with watch:
        _load_unguarded(path)
    assert not any(noted.startswith(_EXECUTION) for noted in watch.noted), watch.noted
    return asdict(CheckpointResult(count, len(executing), slowest))


class _Effects:
    """Describes every audit event but those of opening one file, and of a temporary folder that torch makes.

    Args:
        path: The file that may be opened to read.
    """

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._temporary: set[str] = set()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        first = str(arguments[0]) if arguments else ""
        if event == "tempfile.mkdtemp":  # of a file that may be an old tar
            self._temporary.add(first)
            return None
        reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if event in _HARMLESS or (reads and first == self._path):
            return None
        if first in self._temporary and (reads or event in ("os.mkdir", "os.rmdir", "shutil.rmtree")):
            return None
        return " ".join(map(str, (event, *arguments)))[:500]


_HARMLESS = frozenset(("builtins.id", "pathlib.Path.glob", "os.listdir", "os.scandir", "glob.glob", "sys._getframe"))
_EXECUTION = ("os.system", "subprocess.Popen", "exec", "compile", "os.mkdir", "ctypes.dlopen", "function.__new__")


def _load_unguarded(path: Path) -> None:
    try:
        torch.load(path, map_location="cpu", weights_only=False)
    except Exception:  # what the code leaves behind is often no checkpoint
        return


def _forget(mark: Path) -> None:
    """Make what the code in a checkpoint does possible once more."""
    sys.modules.pop(_UNUSED_MODULE, None)
    if mark.is_dir():
        mark.rmdir()
    mark.unlink(missing_ok=True)


def _draw_checkpoints(count: int, seed: int, valid: bytes, mark: Path) -> Iterator[_Hostile]:
    """As many different checkpoints; two of three hold code."""
    seen: set[bytes] = set()
    rng = random.Random(seed)
    gadgets = _gadgets(mark)
    while len(seen) < count:
        turn = len(seen)
        if turn % 3 == 2:
            hostile = _inert(turn // 3, valid, rng)
        elif turn % 3 == 1:
            hostile = _assembled(turn // 3, rng)
        else:
            hostile = _reduced(*gadgets[turn // 3 % len(gadgets)], rng)
        digest = hashlib.sha256(hostile.content).digest()
        if digest not in seen:
            seen.add(digest)
            yield hostile


class _Call:
    """Pickles as the call of a function.

    Args:
        function: What to call: an importable function, or again a call, whose result is called.
        arguments: Its arguments, of which each may be a call.
    """

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments

    def __call__(self) -> None:
        """What pickle asks of a function; never called."""


_UNUSED_MODULE = "colorsys"


def _gadgets(mark: Path) -> list[tuple[str, str, Any]]:
    """Harmless code: its name, the audit event that betrays it, the object that runs it when it is unpickled."""
    system = _Call(builtins.getattr, _Call(importlib.import_module, "os"), "system")
    inner = pickle.dumps(_Call(os.system, "true"))
    return [
        ("os.system", "os.system", _Call(os.system, "true")),
        ("exec", "exec", _Call(builtins.exec, "pass")),
        ("eval", "compile", _Call(builtins.eval, "0")),
        ("compile", "compile", _Call(builtins.compile, "0", "hostile", "eval")),
        ("Popen", "subprocess.Popen", _Call(subprocess.Popen, ["true"])),
        ("check_output", "subprocess.Popen", _Call(subprocess.check_output, ["true"])),
        ("import_module", "exec", _Call(importlib.import_module, _UNUSED_MODULE)),
        ("__import__", "exec", _Call(builtins.__import__, _UNUSED_MODULE)),
        ("getattr chain", "os.system", _Call(system, "true")),
        ("attrgetter", "os.system", _Call(_Call(operator.attrgetter("system"), _Call(__import__, "os")), "true")),
        ("methodcaller", "os.system", _Call(operator.methodcaller("system", "true"), _Call(__import__, "os"))),
        ("partial", "os.system", _Call(functools.partial(os.system, "true"))),
        ("map", "os.system", _Call(list, _Call(map, os.system, ["true"]))),
        ("timeit", "exec", _Call(timeit.timeit, "pass", "pass", time.perf_counter, 1)),
        ("dlopen", "ctypes.dlopen", _Call(ctypes.CDLL, None)),
        ("mkdir", "os.mkdir", _Call(os.mkdir, str(mark))),
        ("open", f"open {mark}", _Call(open, str(mark), "w")),
        ("write_text", f"open {mark}", _Call(Path.write_text, mark, "x")),
        ("torch storage", "os.system", _Call(torch.storage._load_from_bytes, inner)),
        ("torch dotted name", "os.system", _Call(_Call(torch._utils._import_dotted_name, "os.system"), "true")),
        ("torch collect_env", "subprocess.Popen", _Call(torch.utils.collect_env.run, "true")),
        ("torch execWrapper", "exec", _Call(torch.jit.unsupported_tensor_ops.execWrapper, "pass", {}, {})),
    ]


def _reduced(name: str, event: str, payload: object, rng: random.Random) -> _Hostile:
    """Code as pickle itself writes it."""
    place, protocol = rng.choice(_PLACES), rng.randrange(6)
    documents: dict[str, object] = {
        "alone": payload,
        "weight": _document({"a": payload}),
        "name": _document({payload: 0}),
        "hyper-parameter": _document({}, hyper_parameters={"lr": [payload]}),
        "callback": _document({}, callbacks={"ModelCheckpoint": {"current_score": (0, {"a": payload})}}),
    }
    container = rng.choice(list(_CONTAINERS))
    kind = f"{name} as {place} in {container}, protocol {protocol}"
    return _Hostile(kind, _CONTAINERS[container](pickle.dumps(documents[place], protocol)), event)


def _assembled(turn: int, rng: random.Random) -> _Hostile:
    """Code by opcodes that pickle reads but hardly writes."""
    module, name, argument, event = rng.choice(
        (
            ("os", "system", "true", "os.system"),
            ("posix", "system", "true", "os.system"),
            ("builtins", "eval", "0", "compile"),
            ("builtins", "exec", "pass", "exec"),
            ("importlib", "import_module", _UNUSED_MODULE, "exec"),
            ("subprocess", "getoutput", "true", "subprocess.Popen"),
            ("torch.utils.collect_env", "run", "true", "subprocess.Popen"),
        )
    )
    function, namespace = _global(module, name), _global("argparse", "Namespace")
    text = rng.choice(
        (_unicode(argument), b"S'%b'\n" % argument.encode(), b"V%b\n" % argument.encode(), _short(argument, b"U"))
    )
    build = b"}" + _unicode("__setstate__") + function + b"sb" + text + b"b"
    code = marshal.dumps(compile("0", "hostile", "eval"))
    loaded = _global("marshal", "loads") + b"B" + struct.pack("<I", len(code)) + code + b"\x85R"
    forms = {
        "GLOBAL": function + text + b"\x85R",
        "STACK_GLOBAL": _short(module, b"\x8c") + _short(name, b"\x8c") + b"\x93" + text + b"\x85R",
        "memoised": function + b"q\x000h\x00(" + text + b"tR",
        "INST": b"(" + text + f"i{module}\n{name}\n".encode(),
        "OBJ": b"(" + function + text + b"o",
        "BUILD": namespace + b")R" + build,
        "NEWOBJ": namespace + b")\x81" + build,
        "NEWOBJ_EX": namespace + b")}\x92" + build,
        "function": _global("types", "FunctionType") + loaded + b"}\x86\x81)R",
    }
    form = list(forms)[turn % len(forms)]
    place, container = rng.choice(_PLACES), rng.choice(list(_CONTAINERS))
    header = rng.choice((b"", *(b"\x80" + bytes([protocol]) for protocol in range(6))))
    content = _CONTAINERS[container](header + _placed(forms[form], place) + b".")
    kind = f"{form} of {module}.{name} as {place} in {container}"
    return _Hostile(kind, content, "function.__new__" if form == "function" else event)


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _unicode(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _short(text: str, opcode: bytes) -> bytes:
    return opcode + bytes([len(text)]) + text.encode()


_PLACES = ("alone", "weight", "name", "hyper-parameter", "callback")


def _placed(opcodes: bytes, place: str) -> bytes:
    """Opcodes of a checkpoint that hold others in one place."""
    if place == "alone":
        return opcodes
    inner = {
        "weight": _unicode("state_dict") + b"}" + _unicode("a") + opcodes + b"s",
        "name": _unicode("state_dict") + b"}" + opcodes + b"K\x01s",
        "hyper-parameter": _unicode("hyper_parameters") + b"}" + _unicode("lr") + b"]" + opcodes + b"as",
        "callback": _unicode("callbacks") + b"}" + _unicode("a") + b"(" + opcodes + b"ts",
    }
    return b"}" + _unicode("epoch") + b"K\x00s" + _unicode("global_step") + b"K\x01s" + inner[place] + b"s"


def _document(weights: object, **others: object) -> dict[str, object]:
    return {"state_dict": weights, "epoch": 0, "global_step": 1, **others}


def _zipped(
    data: bytes, others: Mapping[str, bytes] | None = None, prefix: str = "archive", method: int = zipfile.ZIP_STORED
) -> bytes:
    """A zip file as torch.save writes it, with other records beside the pickle."""
    file = io.BytesIO()
    records = {"data.pkl": data, "byteorder": b"little", "version": b"3\n", **(others or {})}
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in records.items():
            archive.writestr(f"{prefix}/{name}", content)
    return file.getvalue()


def _legacy(data: bytes) -> bytes:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = (torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, system)
    return b"".join(pickle.dumps(item, 2) for item in head) + data + pickle.dumps([], 2)


def _tar(data: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages", "../outside", "/outside"):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


_CONTAINERS: dict[str, Callable[[bytes], bytes]] = {
    "zip": _zipped,
    "deflated zip": functools.partial(_zipped, method=zipfile.ZIP_DEFLATED),
    "zip with paths": functools.partial(_zipped, prefix="..", others={"../outside": b"x", "/outside": b"x"}),
    "legacy file": _legacy,
    "bare pickle": bytes,
    "tar": _tar,
}


class _Storages(pickle.Pickler):
    """Pickles a tuple that begins with "storage" as torch refers to a record of the same file."""

    def persistent_id(self, value: object) -> object:
        return value if isinstance(value, tuple) and value[:1] == ("storage",) else None


def _tensor(numel: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *legacy: object) -> bytes:
    """The pickle of a checkpoint whose tensor claims what its storage does not hold."""
    storage = ("storage", torch.FloatStorage, "0", "cpu", numel, *legacy)
    tensor = _Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {})
    file = io.BytesIO()
    _Storages(file, 2).dump(_document({"a": tensor}))
    return file.getvalue()


def _inert(turn: int, valid: bytes, rng: random.Random) -> _Hostile:
    """A file without code that is no checkpoint all the same, or lies about its size."""
    number = rng.randrange(1, 2**16)
    pickled = pickle.dumps(_document({"a": number}), 2)
    kinds: dict[str, Callable[[], bytes]] = {
        "truncated zip": lambda: valid[: rng.randrange(1, len(valid))],
        "truncated pickle": lambda: _zipped(pickled[: rng.randrange(1, len(pickled))]),
        "truncated legacy file": lambda: _legacy(pickled)[: rng.randrange(1, 100)],
        "garbage": lambda: rng.randbytes(number),
        "garbage zip": lambda: b"PK\x03\x04" + rng.randbytes(number),
        "garbage pickle": lambda: _zipped(b"\x80\x02" + rng.randbytes(number)),
        "zeros": lambda: bytes(number),
        "text": lambda: b"<!DOCTYPE html>" * number,
        "bomb": lambda: _zipped(bytes(2**25 + number), method=zipfile.ZIP_DEFLATED),
        "bomb beside": lambda: _zipped(pickled, method=zipfile.ZIP_DEFLATED, others={"data/0": bytes(2**25 + number)}),
        "paths": lambda: _zipped(pickled, prefix="../" * rng.randint(1, 20) + str(number)),
        "TorchScript": lambda: _zipped(pickled, {"constants.pkl": pickled}),
        "no pickle": lambda: _zipped(b"", prefix=str(number)),
        "endless string": lambda: _zipped(b"\x80\x02X" + struct.pack("<I", 2**32 - number)),
        "unknown memo": lambda: _zipped(b"\x80\x02j" + struct.pack("<I", 2**32 - number) + b"."),
        "deep": lambda: _zipped(b"\x80\x02" + b"]" * number + b"a" * (number - 1) + b"."),
        "no stack": lambda: _zipped(b"\x80\x02" + rng.choice((b"t", b"R", b"b", b"s", b"u", b"\x81", b"Q")) * number),
        "huge storage": lambda: _zipped(_tensor(2**60 + number, 0, (number,), (1,))),
        "missing storage": lambda: _zipped(_tensor(number, 0, (number,), (1,))),
        "short storage": lambda: _zipped(_tensor(number, 0, (number,), (1,)), {"data/0": b"1234"}),
        "huge tensor": lambda: _zipped(_tensor(1, 0, (2**60 + number,), (1,)), {"data/0": b"1234"}),
        "offset beyond": lambda: _zipped(_tensor(1, number, (1,), (1,)), {"data/0": b"1234"}),
        "negative offset": lambda: _zipped(_tensor(1, -number, (1,), (1,)), {"data/0": b"1234"}),
        "negative stride": lambda: _zipped(_tensor(1, 0, (2,), (-number,)), {"data/0": b"1234"}),
        "overflowing size": lambda: _zipped(_tensor(1, 0, (2**32, 2**32), (2**62, number)), {"data/0": b"1234"}),
        "huge legacy storage": lambda: _legacy(_tensor(2**60 + number, 0, (number,), (1,), None)),
        "huge call": lambda: _zipped(pickle.dumps(_document({"a": _Call(torch.Tensor, 2**60 + number)}), 2)),
        "list": lambda: _zipped(pickle.dumps([number], 2)),
        "no weights": lambda: _zipped(pickle.dumps({"state_dict": [number], "epoch": 0, "global_step": 1}, 2)),
        "weights of numbers": lambda: _zipped(pickled),
        "negative step": lambda: _zipped(pickle.dumps({**_document({}), "global_step": -number}, 2)),
        "epoch of text": lambda: _zipped(pickle.dumps({**_document({}), "epoch": str(number)}, 2)),
    }
    kind = list(kinds)[turn % len(kinds)]
    return _Hostile(kind, kinds[kind]())


def main() -> None:
    """Run trials and print what came of them as JSON."""
    trials: dict[str, Callable[[Path, int, int], dict[str, Any]]] = {
        "manifests": lambda *args: asdict(fuzz_manifests(*args)),
        "names": _names,
        "checkpoints": _checkpoints,
    }
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("trials", choices=trials)
    parser.add_argument("count", type=int)
    parser.add_argument("seed", type=int)
    parser.add_argument("folder", type=Path, nargs="?")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        result = trials[arguments.trials](folder, arguments.count, arguments.seed)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
