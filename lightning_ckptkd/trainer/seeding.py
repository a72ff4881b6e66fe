"""Seeding what random transforms and networks draw from."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and torch, and nothing else: no environment variable is left behind."""
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def mix(*key: int | str) -> bytes:
    """32 bytes that a key hashes to: those of neighbouring keys have nothing to do with each other."""
    return hashlib.blake2b(repr(key).encode(), digest_size=32).digest()


def seed_by(*key: int | str) -> None:
    """Seed Python, NumPy and torch's CPU generator by a hash of the key; GPUs' generators are left alone."""
    digest = mix(*key)
    random.seed(int.from_bytes(digest[:8], "little"))
    numpy.random.seed(int.from_bytes(digest[8:12], "little"))
    torch.default_generator.manual_seed(int.from_bytes(digest[16:24], "little"))  # torch.manual_seed reaches GPUs too


@contextlib.contextmanager
def keep_random_state() -> Iterator[None]:
    """Put the states of Python's, NumPy's and torch's CPU generators back at the end of the block."""
    state = RandomState.of("cpu")
    try:
        yield
    finally:
        state.restore()


@dataclass(frozen=True)
class RandomState:
    """The states of Python's, NumPy's and torch's CPU generators, and of one GPU's.

    Attributes:
        python: As the library gives it.
        numpy: Likewise.
        cpu: Of torch's.
        gpu: Likewise; None where the device is no CUDA device.
        device: Which it is.
    """

    python: Any
    numpy: Any
    cpu: Tensor
    gpu: Tensor | None
    device: torch.device

    @classmethod
    def of(cls, device: torch.device | str) -> RandomState:
        """As they are now.

        Args:
            device: What draws besides the CPU.
        """
        where = torch.device(device)
        gpu = torch.cuda.get_rng_state(where) if where.type == "cuda" else None
        return cls(random.getstate(), numpy.random.get_state(), torch.default_generator.get_state(), gpu, where)

    def restore(self) -> None:
        """Put them back."""
        random.setstate(self.python)
        numpy.random.set_state(self.numpy)
        torch.default_generator.set_state(self.cpu)
        if self.gpu is not None:
            torch.cuda.set_rng_state(self.gpu, self.device)


def random_state() -> tuple[object, ...]:
    """What tells whether Python's, NumPy's or torch's CPU generator was drawn from in between."""
    words = [numpy.asarray(part).tobytes() for part in numpy.random.get_state(legacy=True)]
    return random.getstate(), *words, torch.default_generator.get_state().numpy().tobytes()
