"""Seeding what random transforms and networks draw from."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy
import torch


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
    states = random.getstate(), numpy.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


def random_state() -> tuple[object, ...]:
    """What tells whether Python's, NumPy's or torch's CPU generator was drawn from in between."""
    words = [numpy.asarray(part).tobytes() for part in numpy.random.get_state(legacy=True)]
    return random.getstate(), *words, torch.default_generator.get_state().numpy().tobytes()
