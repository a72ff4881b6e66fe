"""Lightning's messages of rank 0; Lightning, which takes seconds to import, is imported when there is one."""

from __future__ import annotations

from typing import Any


def rank_zero_warn(message: str | Warning, stacklevel: int = 4, **kwargs: Any) -> None:
    """``lightning.pytorch.utilities.rank_zero_warn``."""
    from lightning.pytorch.utilities import rank_zero_warn

    rank_zero_warn(message, stacklevel=stacklevel + 1, **kwargs)


def rank_zero_info(message: str, stacklevel: int = 4) -> None:
    """``lightning.pytorch.utilities.rank_zero_info``."""
    from lightning.pytorch.utilities import rank_zero_info

    rank_zero_info(message, stacklevel=stacklevel + 1)
