"""Which tensors are sharded, without importing torch's sharding, which takes a third of the time that torch does."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from torch import Tensor
from typing_extensions import TypeIs

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_dtensor(value: Tensor) -> TypeIs[DTensor]:
    """Whether a tensor is a DTensor; there is none before its module is imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)
