"""Checkpoints that hold code, lie about their size or are none: no code runs, and nothing else happens.

Those whose weights are plain tensors are taken over, whatever else they hold; the others are refused.
"""

from __future__ import annotations

import builtins
import codecs
import contextlib
import ctypes
import importlib
import io
import marshal
import operator
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
import tarfile
import time
import timeit
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.jit.unsupported_tensor_ops
import torch.utils.collect_env

from lightning_ckptkd import ArgumentError, SnapshotError, harvest_checkpoints
from tests.reliability.audit import Watch
from tests.reliability.forking import main
from tests.reliability.harvests import scratch_folder


class _Hostile(NamedTuple):
    """A hostile checkpoint.

    ``event`` is how the audit event of its code begins, None where it holds none; ``taken`` says whether its weights
    are plain tensors all the same.
    """

    kind: str
    content: bytes
    event: str | None = None
    taken: bool = False


def hostile_checkpoints(count: int, seed: int = 0) -> dict[str, Any]:
    """Take over ``count`` different hostile checkpoints, then load those that hold code without the guard.

    Raises:
        AssertionError: If one did anything but open itself (and, where its weights are plain, become a snapshot), if
            one without plain weights was not refused, or if code did not run without the guard; names the trial.
    """
    with scratch_folder() as scratch:
        source, target, mark = (Path(scratch) / name for name in ("checkpoints", "harvest", "mark"))
        source.mkdir()
        path = source / "hostile.ckpt"
        valid = _saved()
        path.write_bytes(valid)
        harvest_checkpoints(source, Path(scratch) / "warm", progress=False)  # what is imported on first use is by now
        codecs.lookup("cp437")  # zipfile's for names that are not marked as UTF-8
        watch = Watch(partial(_describe_effect, str(path), str(target)))
        unguarded = Watch(partial(_describe_effect, str(path), ""))
        with watch:
            harvest_checkpoints(source, target, progress=False)
        usual = set(watch.noted)  # what writing a harvest does, of the weights alone
        shutil.rmtree(target)
        slowest, taken, hostiles = 0.0, 0, _draw_checkpoints(count, seed, valid, mark)
        for trial, hostile in enumerate(hostiles):
            what = f"seed {seed}, trial {trial}, {hostile.kind}"
            path.write_bytes(hostile.content)
            start = time.perf_counter()
            try:
                with watch:
                    store = harvest_checkpoints(source, target, progress=False)
            except (SnapshotError, ArgumentError):
                assert not hostile.taken, f"{what} was refused"
            except Exception as error:
                raise AssertionError(f"{what}: {error!r}") from error
            else:
                assert hostile.taken, f"{what} was taken over"
                (weight,) = store.load(store.snapshots[0]).values()
                assert torch.equal(weight, torch.ones(2)), f"{what}: {weight}"
                taken += 1
            slowest = max(slowest, time.perf_counter() - start)
            noted = [effect for effect in watch.noted if not hostile.taken or effect not in usual]
            effects = [*noted, *(str(made) for made in (mark, target) if made.exists() and not hostile.taken)]
            assert not effects and not mark.exists(), f"{what}: {effects}"
            shutil.rmtree(target, ignore_errors=True)
        executing = [hostile for hostile in hostiles if hostile.event is not None]
        for hostile in executing:
            noted = _load_unguarded(path, hostile.content, unguarded)
            executed = any(f"{effect} ".startswith(f"{hostile.event} ") for effect in noted)
            assert executed, f"seed {seed}: {hostile.kind} ran nothing without the guard: {noted}"
            sys.modules.pop(_UNUSED_MODULE, None)  # so that the next can do it once more
            with contextlib.suppress(FileNotFoundError):
                (mark.rmdir if mark.is_dir() else mark.unlink)()
        noted = _load_unguarded(path, valid, unguarded)
        assert not any(effect.startswith(_EXECUTION) for effect in noted), noted
    return {
        "trials": count,
        "refused": count - taken,
        "taken": taken,
        "executing": len(executing),
        "slowest_seconds": slowest,
    }


_HARMLESS = frozenset(("builtins.id", "pathlib.Path.glob", "os.listdir", "os.scandir", "glob.glob", "sys._getframe"))
_EXECUTION = ("os.system", "subprocess.Popen", "exec", "compile", "os.mkdir", "ctypes.dlopen", "function.__new__")


def _describe_effect(path: str, target: str, event: str, arguments: tuple[Any, ...]) -> str | None:
    """Any audit event but those of reading one file, and of files in the harvest's folder."""
    first = str(arguments[0]) if arguments else ""
    reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if event in _HARMLESS or (reads and isinstance(arguments[0], int)):  # of what is open already
        return None
    if reads and first == path:
        return None
    if target and Path(first).is_relative_to(Path(target)) and event in ("open", "os.mkdir", "os.rename", "os.listdir"):
        return None
    return " ".join(map(str, (event, *arguments)))[:500]


def _load_unguarded(path: Path, content: bytes, watch: Watch) -> list[str]:
    """What happens when a checkpoint is read without the guard."""
    path.write_bytes(content)
    with watch, contextlib.suppress(Exception):  # what the code leaves behind is often no checkpoint
        torch.load(path, map_location="cpu", weights_only=False)
    return watch.noted


def _draw_checkpoints(count: int, seed: int, valid: bytes, mark: Path) -> list[_Hostile]:
    """As many different checkpoints; three of four hold code."""
    drawn: dict[bytes, _Hostile] = {}
    rng = random.Random(seed)
    gadgets = _gadgets(mark)
    while len(drawn) < count:
        turn, kind = divmod(len(drawn), 4)
        if kind == 3:
            hostile = _beside(*gadgets[turn % len(gadgets)], rng)
        elif kind == 2:
            hostile = _inert(turn, valid, rng)
        elif kind == 1:
            hostile = _assembled(turn, rng)
        else:
            hostile = _reduced(*gadgets[turn % len(gadgets)], rng)
        drawn.setdefault(hostile.content, hostile)
    return list(drawn.values())


class _Call:
    """Pickles as the call of an importable function, or of what another call gives, on arguments that may be calls."""

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
        ("partial", "os.system", _Call(partial(os.system, "true"))),
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


def _placed(payload: object, rng: random.Random) -> tuple[str, object]:
    """A checkpoint that holds code in one place, and the name of the place."""
    documents = {
        "alone": payload,
        "weight": _document({"a": payload}),
        "name": _document({payload: 0}),
        "hyper-parameter": _document({}, hyper_parameters={"lr": [payload]}),
        "callback": _document({}, callbacks={"ModelCheckpoint": {"current_score": (0, {"a": payload})}}),
    }
    return rng.choice(list(documents.items()))


def _reduced(name: str, event: str, payload: object, rng: random.Random) -> _Hostile:
    """Code as pickle itself writes it."""
    place, document = _placed(payload, rng)
    protocol, container = rng.randrange(6), rng.choice(list(_CONTAINERS))
    kind = f"{name} as {place} in {container}, protocol {protocol}"
    return _Hostile(kind, _CONTAINERS[container](pickle.dumps(document, protocol)), event)


def _beside(name: str, event: str, payload: object, rng: random.Random) -> _Hostile:
    """Code beside plain weights, as torch.save writes it."""
    number, protocol = rng.randrange(2**62), rng.randrange(2, 6)
    places: dict[str, dict[str, Any]] = {
        "hyper-parameter": {"hyper_parameters": {"lr": [payload], "n": number}},
        "callback": {"callbacks": {"ModelCheckpoint": {"monitor": "loss", "current_score": payload, "n": number}}},
        "key": {"callbacks": {payload: number}},
        "optimizer": {"optimizer_states": [{"state": {0: payload, 1: number}}]},
        "version": {"pytorch-lightning_version": payload, "n": number},
        "attribute": {"state_dict": _With({"a": torch.ones(2)}, {"_metadata": payload, "n": number})},
    }
    place = rng.choice(list(places))
    kind = f"{name} as {place} beside weights, protocol {protocol}"
    return _Hostile(kind, _saved(protocol=protocol, **places[place]), event, taken=True)


class _With:
    """Pickles as an OrderedDict with attributes."""

    def __init__(self, items: dict[str, Any], state: dict[str, Any]) -> None:
        self.reduced = OrderedDict, (), state, None, iter(items.items())

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


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
    place, document = _placed("<code>", rng)
    header = rng.choice((b"", *(b"\x80" + bytes([protocol]) for protocol in range(6))))  # protocol 1 writes none
    written = header + pickle.dumps(document, 1).replace(_unicode("<code>"), forms[form])
    container = rng.choice(list(_CONTAINERS))
    kind = f"{form} of {module}.{name} as {place} in {container}"
    return _Hostile(kind, _CONTAINERS[container](written), "function.__new__" if form == "function" else event)


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _unicode(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _short(text: str, opcode: bytes) -> bytes:
    return opcode + bytes([len(text)]) + text.encode()


def _document(weights: object, **others: object) -> dict[str, object]:
    return {"state_dict": weights, "epoch": 0, "global_step": 1, **others}


def _saved(protocol: int = 2, **others: object) -> bytes:
    """A checkpoint that is valid but for what is given."""
    file = io.BytesIO()
    torch.save({**_document({"a": torch.ones(2)}), **others}, file, pickle_protocol=protocol)
    return file.getvalue()


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
    "deflated zip": partial(_zipped, method=zipfile.ZIP_DEFLATED),
    "zip with paths": partial(_zipped, prefix="..", others={"../outside": b"x", "/outside": b"x"}),
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
    file = io.BytesIO()
    call = _Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {})
    _Storages(file, 2).dump(_document({"a": call}))
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
        "negative step": lambda: _saved(global_step=-number),
        "epoch of text": lambda: _saved(epoch=str(number)),
    }
    kind = list(kinds)[turn % len(kinds)]
    return _Hostile(kind, kinds[kind]())


if __name__ == "__main__":
    main(hostile_checkpoints)
