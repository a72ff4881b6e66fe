"""Words of the texts that scikit-learn ships with its data sets, as token ids."""

from __future__ import annotations

import re
from functools import cache

import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from torch import Tensor

PAD, VOCABULARY = 0, 64


@cache
def texts() -> list[list[str]]:
    sources = (load_iris, load_wine, load_diabetes, load_breast_cancer)
    return [re.findall(r"\w+|[^\w\s]", load().DESCR)[:900] for load in sources]


@cache
def ids() -> dict[str, int]:
    counts: dict[str, int] = {}
    for text in texts():
        for word in text:
            counts[word] = counts.get(word, 0) + 1
    usual = sorted(counts, key=lambda word: (-counts[word], word))[: VOCABULARY - 2]
    return {word: place + 1 for place, word in enumerate(usual)}  # 0 pads, the last is every other word


def encode(words: list[str]) -> Tensor:
    return torch.tensor([ids().get(word, VOCABULARY - 1) for word in words])


def passages(seed: int, count: int, least: int = 5, most: int = 16) -> list[tuple[list[str], int]]:
    """So many passages of differing length, and which of the four texts each is from."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        text = texts()[number % 4]
        length = int(torch.randint(least, most + 1, (1,), generator=generator))
        start = int(torch.randint(len(text) - length, (1,), generator=generator))
        found.append((text[start : start + length], number % 4))
    return found
