"""Pickles are read as descriptions, whatever they hold; nothing of them is imported or called."""

from __future__ import annotations

import argparse
import io
import pickle
import pickletools
import struct
from collections import Counter, OrderedDict, defaultdict
from pathlib import PurePosixPath
from typing import Any

import pytest

from lightning_ckptkd.snapshots.inert_pickle import Call, Global, Items, PickleError, kind_of, read_pickle


def read(data: bytes) -> Any:
    return read_pickle(io.BytesIO(data), len(data))[0]


def plain(value: Any) -> Any:
    """What was read, with dicts made of items."""
    if isinstance(value, Items):
        return {plain(key): plain(item) for key, item in value.pairs}
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value))
    return kind_of(value) if isinstance(value, (Global, Call)) else value


PLAIN = [
    None, True, False, 0, 255, 256, -1, 2**31, -(2**31), 2**64, -(10**400), 1.5, float("inf"), "", "ünï\ud800",
    "x" * 300, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [1], [1, [2, "a"]], {}, {"a": 1, 2: {"b": (None,)}},
    OrderedDict(a=1, b=OrderedDict()),
]  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values(protocol: int) -> None:
    for value in (*PLAIN, PLAIN[:-1], *([b"", b"\xff" * 300, bytearray(b"12")] if protocol > 2 else [])):
        found = plain(read(pickle.dumps(value, protocol)))
        if protocol < 5 and isinstance(value, bytearray):
            assert found == "builtins.bytearray"
        else:
            assert found == value
            assert type(found) is (dict if isinstance(value, OrderedDict) else bytes if value == b"12" else type(value))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_objects_are_described(protocol: int) -> None:
    described = {
        "argparse.Namespace": argparse.Namespace(a=1, b=[2]),
        "pathlib.PurePosixPath": PurePosixPath("a/b"),
        "collections.Counter": Counter("aab"),
        "collections.defaultdict": defaultdict(list, a=[1]),
        "fractions.Fraction": __import__("fractions").Fraction(1, 3),
    }
    for name, value in described.items():
        found = read(pickle.dumps({"before": 1, "value": value, "after": [2]}, protocol))
        assert plain(found)["after"] == [2]
        assert isinstance(found.get("value"), Call)
        assert kind_of(found.get("value")) in (name, "copy_reg._reconstructor", "copyreg._reconstructor")
    for value in (frozenset("a"), {1, 2}, {frozenset({1})}):
        assert isinstance(read(pickle.dumps(value, protocol)), Call)
    assert kind_of(read(pickle.dumps(argparse.Namespace, protocol))) == "argparse.Namespace"


def test_what_refers_to_itself() -> None:
    cyclic: list[Any] = [1]
    cyclic += [cyclic, (cyclic,)]
    for protocol in (2, 4):
        found = read(pickle.dumps(cyclic, protocol))
        assert found[1] is found
        assert found[2][0] is found


def test_a_name_is_read_not_imported() -> None:
    found = read(b"\x80\x02cno.such_module\nNo\x1b[2JSuch\n.")
    assert (found.path, kind_of(found)) == ("no.such_module.No\x1b[2JSuch", "no.such_module.No?[2JSuch")


@pytest.mark.parametrize(
    "data",
    [
        b"", b".", b"\x80\x02", b"\x80\x02]", b"\x80\x02a.", b"\x80\x02]Ne.", b"\x80\x02}(Nu.", b"\x80\x02NNa.",
        b"\x80\x02NNNs.", b"\x80\x02N\x85R.", b"\x80\x02\x86.", b"\x80\x02t.", b"\x80\x021.", b"\x80\x020.",
        b"\x80\x02h\x05.", b"\x80\x02j\xff\xff\xff\xff.", b"\x80\x02q\x00.", b"\x80\x02\x8b\xff\xff\xff\xff.",
        b"\x80\x02X\xff\xff\xff\xff.", b"\x80\x02\x8d" + b"\xff" * 8 + b".", b"\x80\x02X\x01\x00\x00\x00\xff.",
        b"\x80\x02cos\nsystem", b"\x80\x02cos\n", b"\x80\x02c" + b"a" * 5000 + b"\nb\n.", b"\x80\x02NN\x93.",
        b"\x80\x02]\x90.", b"\x80\x02](N\x90.", b"\x80\x02b.", b"\x80\x02Q.",
    ],
)  # fmt: skip
def test_malformed_pickles_are_refused(data: bytes) -> None:
    with pytest.raises(PickleError):
        read(data)


def test_each_other_opcode_is_refused() -> None:
    """Those that protocol 0 and 1 alone write, that find classes by number, or that need buffers."""
    names = {"INT", "LONG", "FLOAT", "STRING", "UNICODE", "GET", "PUT", "LIST", "DICT", "INST", "OBJ", "PERSID", "DUP"}
    names |= {"EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}
    codes = {opcode.name: opcode.code.encode("latin1") for opcode in pickletools.opcodes}
    assert names < codes.keys()
    for name in names:
        with pytest.raises(PickleError, match=r"the opcode .* which is not read"):
            read(b"\x80\x02((NNN" + codes[name] + b"\x01\x00\x00\x00\n\n.")


def test_time_and_memory_follow_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle of some hundred bytes whose values, if they were hashed or compared, would take for ever."""
    pair = b"N" + b"N\x86" + b"".join(b"q\x00h\x00\x86" for _ in range(200))
    assert isinstance(read(b"\x80\x02}" + pair + b"Ns."), Items)
    assert isinstance(read(b"\x80\x04\x8f(" + pair + b"\x90."), Call)
    assert isinstance(read(b"\x80\x04(" + pair + b"\x91."), Call)
    deep = b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."
    assert isinstance(read(deep), list)
    monkeypatch.setattr("lightning_ckptkd.snapshots.inert_pickle._MAX_OPCODES", 1000)
    with pytest.raises(PickleError, match="more than 1000 opcodes"):
        read(deep)


def test_the_reader_stops_at_the_end_of_its_pickle() -> None:
    data = pickle.dumps([1], 2) + b"rest"
    source = io.BytesIO(data)
    read_pickle(source, len(data))
    assert source.read() == b"rest"
    with pytest.raises(PickleError, match="cut off"):
        read_pickle(io.BytesIO(b"\x80\x02X" + struct.pack("<I", 4) + b"abcd."), 9)
