"""Watching what Python does by an audit hook; none can be removed, so such trials run in a process of their own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


class Watch:
    """Notes what ``describe`` says of each audit event while it is entered, unless that is None."""

    def __init__(self, describe: Callable[[str, tuple[Any, ...]], str | None]) -> None:
        self.noted: list[str] = []
        self._describe = describe
        self._active = False
        sys.addaudithook(self._hook)

    def __enter__(self) -> None:
        self.noted, self._active = [], True

    def __exit__(self, *_: object) -> None:
        self._active = False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._active:
            self._active = False
            noted = self._describe(event, arguments)
            self.noted += [] if noted is None else [noted]
            self._active = True
