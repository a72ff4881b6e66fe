"""Shapes in annotations: ``Float[Tensor, "N K"]`` is a tensor of N x K floats; docs/design.md has the letters.

To the package and to type checkers it is a Tensor. The tests put jaxtyping's types in the place of these names before
anything that is annotated is imported (tests/shapes.py), so that arguments and results are held against it there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Annotated as Bool
    from typing import Annotated as Float
    from typing import Annotated as Int
    from typing import Annotated as Num
    from typing import Annotated as Shaped
else:

    class _Unchecked:
        def __class_getitem__(cls, tensor_and_shape: tuple[Any, str]) -> Any:
            return tensor_and_shape[0]

    Bool = Float = Int = Num = Shaped = _Unchecked

__all__ = ["Bool", "Float", "Int", "Num", "Shaped"]
