"""Shapes that annotations of the pure rooms name, checked whenever the tests call something there.

``install`` has to run before these rooms are imported. Other processes that tests start are as users have them.
"""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Callable
from typing import Annotated, Any

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.vale import IsInstance
from torch import Tensor

from lightning_ckptkd import shapes

ROOMS = ("lightning_ckptkd.information", "lightning_ckptkd.losses", "lightning_ckptkd.tasks")
_CONF = BeartypeConf(is_pep484_tower=True)  # an int where a float is asked for is ordinary use


class _Checked:
    """jaxtyping's type as what else is known of the annotation: whoever asks for types without extras sees a Tensor."""

    def __init__(self, kind: Any) -> None:
        self._kind = kind

    def __getitem__(self, tensor_and_shape: tuple[type[Tensor], str]) -> Any:
        return Annotated[tensor_and_shape[0], IsInstance[self._kind[tensor_and_shape]]]


def install() -> None:
    for name in shapes.__all__:
        setattr(shapes, name, _Checked(getattr(jaxtyping, name)))
    jaxtyping.install_import_hook(ROOMS, "tests.shapes.check_after")


def check_after(function: Callable[..., Any]) -> Callable[..., Any]:
    """A type checker for jaxtyping that lets a function speak first, so that the package's own errors are seen.

    jaxtyping asks twice: for a check of the arguments before a call, whose result may be anything, and for one of the
    arguments and the result after it. The second alone is left, so a function that returns has been checked in both.
    """
    if inspect.signature(function).return_annotation is Any:
        return function
    check = beartype(conf=_CONF)(function)

    @functools.wraps(function)
    def quietly(*args: Any, **kwargs: Any) -> Any:
        state = random.getstate()  # beartype draws the item of a list that it looks at
        try:
            return check(*args, **kwargs)
        finally:
            random.setstate(state)

    return quietly
