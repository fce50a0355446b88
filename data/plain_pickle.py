"""Read a pickle of plain values (dicts, lists, tuples, text, numbers) without running anything of it.

Python's own reader calls whatever a pickle names, so a file from a stranger can run any program. Here the opcodes are
parsed by `pickletools`, which executes none, and only those that build plain values are acted on.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.errors import InputError

LARGEST = 8 << 20  # bytes: the table of a vocabulary of 65,536 tokens is some MB
VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
}  # fmt: skip
SILENT = {"PROTO", "FRAME", "STOP"}


def read_plain_pickle(path: Path) -> Any:
    """The value in a pickle file. InputError for one that is damaged, too large, or holds anything but plain values."""
    size = path.stat().st_size
    if size > LARGEST:
        raise InputError(f"{path} has {size:,} bytes; a table of tokens has at most {LARGEST:,}")
    # A pickle ends with one value on the stack; anything else is damage, and unpacking `(value,)` says so.
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(path.read_bytes()):
            machine.act(opcode.name, argument)
        (value,) = machine.stack
    except _RefusalError as error:
        raise InputError(f"{path} is refused, and nothing of it was run: {error}") from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a readable pickle: {error}") from None
    return value


class _RefusalError(Exception):
    """A pickle that asks for more than plain values."""


class _Machine:
    """The part of pickle's stack machine that makes plain values."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []  # where on the stack the elements of unfinished collections begin
        self._memo: dict[int, Any] = {}
        self._acts: dict[str, Callable[[Any], None]] = {
            "MARK": lambda _: self._marks.append(len(self.stack)),
            "NONE": lambda _: self.stack.append(None),
            "NEWTRUE": lambda _: self.stack.append(True),
            "NEWFALSE": lambda _: self.stack.append(False),
            "EMPTY_DICT": lambda _: self.stack.append({}),
            "EMPTY_LIST": lambda _: self.stack.append([]),
            "EMPTY_TUPLE": lambda _: self.stack.append(()),
            "DICT": lambda _: self.stack.append(_pairs(self._marked())),
            "LIST": lambda _: self.stack.append(self._marked()),
            "TUPLE": lambda _: self.stack.append(tuple(self._marked())),
            "TUPLE1": lambda _: self.stack.append(tuple(self._last(1))),
            "TUPLE2": lambda _: self.stack.append(tuple(self._last(2))),
            "TUPLE3": lambda _: self.stack.append(tuple(self._last(3))),
            "SETITEM": lambda _: self._fill(self._last(2)),
            "SETITEMS": lambda _: self._fill(self._marked()),
            "APPEND": lambda _: self._extend(self._last(1)),
            "APPENDS": lambda _: self._extend(self._marked()),
            "MEMOIZE": lambda _: self._remember(len(self._memo)),
            **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), self._remember),
            **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda place: self.stack.append(self._memo[place])),
        }

    def act(self, name: str, argument: Any) -> None:
        """Carry out one opcode. _RefusalError for one that makes anything but plain values."""
        if name in VALUES:
            self.stack.append(argument)
        elif name in self._acts:
            self._acts[name](argument)
        elif name not in SILENT:
            shown = f" {str(argument)[:80]!r}" if argument is not None else ""
            raise _RefusalError(f"it holds {name}{shown}, which is no dict, list, text or number")

    def _remember(self, place: int) -> None:
        self._memo[place] = self.stack[-1]

    def _last(self, count: int) -> list[Any]:
        """The topmost values of the stack, which are taken off."""
        taken = self.stack[-count:]
        if len(taken) < count:
            raise IndexError("its stack is empty")
        del self.stack[-count:]
        return taken

    def _marked(self) -> list[Any]:
        """Everything since the latest mark, which is taken off."""
        start = self._marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def _fill(self, flat: list[Any]) -> None:
        self.stack[-1].update(_pairs(flat))

    def _extend(self, values: list[Any]) -> None:
        self.stack[-1].extend(values)


def _pairs(flat: list[Any]) -> dict[Any, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
