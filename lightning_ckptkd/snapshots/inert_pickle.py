"""A reader of pickles that builds nothing: what one would import, call or change becomes a description of it.

Untrusted pickles are read with this and with nothing else. It knows the opcodes that pickle's protocols 2 to 5 write
and refuses all others. It imports nothing, calls nothing that a pickle names, sets no attribute, and neither hashes nor
compares values, so that time and memory grow with the length of the pickle alone.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO

_MAX_OPCODES = 2**21  # a checkpoint of a thousand tensors and Adam's states has some 100,000
_MAX_NAME = 1000  # bytes of a module's or a class's name


class PickleError(Exception):
    """A pickle is malformed, or holds what is not read."""


class Global:
    """What a pickle would import."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path


class Call:
    """What a pickle would make by a call: an object, whatever is put into it afterwards being dropped."""

    __slots__ = ("arguments", "function")

    def __init__(self, function: object, arguments: object) -> None:
        self.function = function
        self.arguments = arguments

    @property
    def path(self) -> str:
        """The function's or class's name; empty where it is none that would be imported."""
        return self.function.path if isinstance(self.function, Global) else ""


class Reference:
    """What a pickle refers to outside itself."""

    __slots__ = ("key",)

    def __init__(self, key: object) -> None:
        self.key = key


class Items:
    """A dict or OrderedDict, as keys and values in the order in which they were set."""

    __slots__ = ("pairs",)

    def __init__(self) -> None:
        self.pairs: list[tuple[object, object]] = []

    def named(self) -> Iterator[tuple[str, object]]:
        """The pairs whose key is a string."""
        return ((key, value) for key, value in self.pairs if isinstance(key, str))

    def get(self, name: str) -> object:
        """The last value of that name, or None."""
        return next((value for key, value in reversed(self.pairs) if isinstance(key, str) and key == name), None)


def kind_of(value: object) -> str:
    """What a value is, in words that can be printed; for messages."""
    if isinstance(value, (Global, Call)):
        return "".join(letter if letter.isprintable() else "?" for letter in value.path) or "an object"
    return {Items: "dict", Reference: "a reference"}.get(type(value), type(value).__name__)


def read_pickle(source: BinaryIO, size: int) -> tuple[object, list[Reference]]:
    """Read one pickle, from the source's position up to its end.

    Args:
        source: Where it is read from; ends up behind the pickle.
        size: How many bytes there are.

    Returns:
        What it holds, made of None, bool, int, float, str, bytes, tuple, list and this module's classes; and each
        reference that it makes.

    Raises:
        PickleError: If it is malformed, too long or holds an opcode that is not known.
    """
    machine = _Machine(source, size)
    try:
        return machine.run(), machine.references
    except (IndexError, KeyError, UnicodeDecodeError, OverflowError) as error:
        raise PickleError(f"its pickle is malformed ({type(error).__name__})") from None


class _Machine:
    def __init__(self, source: BinaryIO, size: int) -> None:
        self._source = source
        self._left = size
        self._stack: list[object] = []
        self._below: list[list[object]] = []  # the stacks under each mark
        self._memo: dict[int, object] = {}
        self.references: list[Reference] = []

    def run(self) -> object:
        for _ in range(_MAX_OPCODES):
            opcode = self._read(1)
            if opcode == pickle.STOP:
                return self._stack.pop()
            action = _ACTIONS.get(opcode)
            if action is None:
                raise PickleError(f"its pickle holds the opcode {opcode!r}, which is not read")
            action(self)
        raise PickleError(f"its pickle has more than {_MAX_OPCODES} opcodes")

    def _read(self, count: int) -> bytes:
        if count > self._left:
            raise PickleError("its pickle is cut off")
        data = self._source.read(count)
        if len(data) != count:
            raise PickleError("its pickle is cut off")
        self._left -= count
        return data

    def _natural(self, form: str) -> int:
        (value,) = struct.unpack(form, self._read(struct.calcsize(form)))
        if value < 0:
            raise PickleError("its pickle has a negative length")
        return int(value)

    def _line(self) -> str:
        line = self._source.readline(min(self._left, _MAX_NAME))
        self._left -= len(line)
        if not line.endswith(b"\n"):
            raise PickleError("its pickle has a name without an end")
        return line[:-1].decode()

    def _pop_mark(self) -> list[object]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def push_number(self, form: str) -> None:
        self._stack += struct.unpack(form, self._read(struct.calcsize(form)))

    def push_long(self, form: str) -> None:
        self._push(int.from_bytes(self._read(self._natural(form)), "little", signed=True))

    def push_text(self, form: str) -> None:
        self._push(str(self._read(self._natural(form)), "utf-8", "surrogatepass"))

    def push_bytes(self, form: str) -> None:
        self._push(self._read(self._natural(form)))

    def push_tuple(self, count: int) -> None:
        if len(self._stack) < count:
            raise IndexError
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def push_marked_tuple(self) -> None:
        items = self._pop_mark()
        self._push(tuple(items))

    def push_frozenset(self) -> None:
        items = self._pop_mark()
        self._push(Call(Global("builtins.frozenset"), tuple(items)))

    def mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def drop_marked(self) -> None:
        self._pop_mark()

    def skip(self, count: int) -> None:
        self._read(count)

    def put(self, form: str) -> None:
        self._memo[self._natural(form)] = self._stack[-1]

    def get(self, form: str) -> None:
        self._push(self._memo[self._natural(form)])

    def memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def add_to_list(self, items: list[object]) -> None:
        target = self._stack[-1]
        if type(target) is list:
            target += items
        elif not isinstance(target, Call):
            raise PickleError(f"its pickle appends to {kind_of(target)}")

    def set_items(self, items: list[object]) -> None:
        target = self._stack[-1]
        if len(items) % 2:
            raise PickleError("its pickle sets a key without a value")
        if isinstance(target, Items):
            target.pairs += zip(items[::2], items[1::2], strict=True)
        elif not isinstance(target, Call):
            raise PickleError(f"its pickle sets items of {kind_of(target)}")

    def set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self.set_items([key, value])

    def add_to_set(self) -> None:
        self._pop_mark()
        if not isinstance(self._stack[-1], Call):
            raise PickleError(f"its pickle adds to {kind_of(self._stack[-1])}")

    def name_global(self) -> None:
        module = self._line()
        self._push(Global(f"{module}.{self._line()}"))

    def name_stacked_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str) or len(module) + len(name) > _MAX_NAME:
            raise PickleError("its pickle names an import that is no name")
        self._push(Global(f"{module}.{name}"))

    def call(self, arguments: int) -> None:
        given = self._stack.pop() if arguments == 1 else (self._stack.pop(), self._stack.pop())[::-1]
        function = self._stack.pop()
        empty = isinstance(given, tuple) and not given
        made = isinstance(function, Global) and function.path == "collections.OrderedDict" and empty
        self._push(Items() if made else Call(function, given))

    def drop_state(self) -> None:
        self._stack.pop()

    def refer(self) -> None:
        reference = Reference(self._stack.pop())
        self.references.append(reference)
        self._push(reference)


_ACTIONS: dict[bytes, Callable[[_Machine], None]] = {
    pickle.PROTO: lambda machine: machine.skip(1),
    pickle.FRAME: lambda machine: machine.skip(8),
    pickle.NONE: lambda machine: machine._push(None),
    pickle.NEWTRUE: lambda machine: machine._push(True),
    pickle.NEWFALSE: lambda machine: machine._push(False),
    pickle.BININT: lambda machine: machine.push_number("<i"),
    pickle.BININT1: lambda machine: machine.push_number("<B"),
    pickle.BININT2: lambda machine: machine.push_number("<H"),
    pickle.BINFLOAT: lambda machine: machine.push_number(">d"),
    pickle.LONG1: lambda machine: machine.push_long("<B"),
    pickle.LONG4: lambda machine: machine.push_long("<i"),
    pickle.SHORT_BINSTRING: lambda machine: machine.push_text("<B"),
    pickle.BINSTRING: lambda machine: machine.push_text("<i"),
    pickle.SHORT_BINUNICODE: lambda machine: machine.push_text("<B"),
    pickle.BINUNICODE: lambda machine: machine.push_text("<I"),
    pickle.BINUNICODE8: lambda machine: machine.push_text("<Q"),
    pickle.SHORT_BINBYTES: lambda machine: machine.push_bytes("<B"),
    pickle.BINBYTES: lambda machine: machine.push_bytes("<I"),
    pickle.BINBYTES8: lambda machine: machine.push_bytes("<Q"),
    pickle.BYTEARRAY8: lambda machine: machine.push_bytes("<Q"),
    pickle.EMPTY_TUPLE: lambda machine: machine._push(()),
    pickle.TUPLE1: lambda machine: machine.push_tuple(1),
    pickle.TUPLE2: lambda machine: machine.push_tuple(2),
    pickle.TUPLE3: lambda machine: machine.push_tuple(3),
    pickle.TUPLE: _Machine.push_marked_tuple,
    pickle.EMPTY_LIST: lambda machine: machine._push([]),
    pickle.EMPTY_DICT: lambda machine: machine._push(Items()),
    pickle.EMPTY_SET: lambda machine: machine._push(Call(Global("builtins.set"), ())),
    pickle.FROZENSET: _Machine.push_frozenset,
    pickle.APPEND: lambda machine: machine.add_to_list([machine._stack.pop()]),
    pickle.APPENDS: lambda machine: machine.add_to_list(machine._pop_mark()),
    pickle.SETITEM: _Machine.set_item,
    pickle.SETITEMS: lambda machine: machine.set_items(machine._pop_mark()),
    pickle.ADDITEMS: _Machine.add_to_set,
    pickle.MARK: _Machine.mark,
    pickle.POP: _Machine.pop,
    pickle.POP_MARK: _Machine.drop_marked,
    pickle.BINPUT: lambda machine: machine.put("<B"),
    pickle.LONG_BINPUT: lambda machine: machine.put("<I"),
    pickle.MEMOIZE: _Machine.memoize,
    pickle.BINGET: lambda machine: machine.get("<B"),
    pickle.LONG_BINGET: lambda machine: machine.get("<I"),
    pickle.GLOBAL: _Machine.name_global,
    pickle.STACK_GLOBAL: _Machine.name_stacked_global,
    pickle.REDUCE: lambda machine: machine.call(1),
    pickle.NEWOBJ: lambda machine: machine.call(1),
    pickle.NEWOBJ_EX: lambda machine: machine.call(2),
    pickle.BUILD: _Machine.drop_state,  # attributes, and whatever __setstate__ would do
    pickle.BINPERSID: _Machine.refer,
}
