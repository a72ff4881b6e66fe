from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence, pad_sequence
from torch.utils.data import default_collate

from lightning_ckptkd import ArgumentError
from lightning_ckptkd.teachers.apart import CollateApart
from lightning_ckptkd.teachers.views import ViewBatch, ViewSample

LENGTHS = (3, 5, 3, 2, 5, 3)


@dataclass
class Padded:
    """A batch of the user's own kind."""

    ids: Tensor
    labels: Tensor


def items(lengths: tuple[int, ...] = LENGTHS) -> list[ViewSample]:
    return [
        ViewSample((torch.full((length,), place + 1), place), place, 100 + place)
        for place, length in enumerate(lengths)
    ]


def padded(samples: list[Any], to: int = 0) -> Any:
    ids = pad_sequence([ids for ids, _ in samples], batch_first=True)
    ids = torch.nn.functional.pad(ids, (0, max(0, to - ids.shape[1])))
    return ids, torch.tensor([label for _, label in samples])


def trimmed(samples: list[Any]) -> Any:
    """All are stored at one length, and cut to the longest of a batch."""
    ids, labels = padded(samples, 9)
    return ids[:, : int((ids != 0).sum(1).max())], labels


def groups(batches: list[ViewBatch]) -> list[list[int]]:
    for batch in batches:
        assert (batch.checksums - 100).tolist() == batch.items.tolist()
    return [batch.items.tolist() for batch in batches]


@pytest.mark.parametrize(
    "collate",
    [
        padded,
        trimmed,
        lambda samples: Padded(*padded(samples)),
        lambda samples: {"x": padded(samples)[0], "labels": padded(samples)[1]},
    ],
)
def test_samples_of_different_lengths_are_kept_apart(collate: Any) -> None:
    batches = CollateApart(collate)(items())
    assert groups(batches) == [[0, 2, 5], [1, 4], [3]]
    ids = [
        batch.batch["x"] if isinstance(batch.batch, dict) else getattr(batch.batch, "ids", None) for batch in batches
    ]
    ids = [batch.batch[0] if found is None else found for found, batch in zip(ids, batches, strict=True)]
    assert all(bool((found != 0).all()) for found in ids), "no padding"


@pytest.mark.parametrize(
    "collate",
    [
        lambda samples: padded(samples, 9),
        lambda samples: (pack_sequence([ids for ids, _ in samples], enforce_sorted=False), padded(samples)[1]),
        lambda samples: (torch.cat([ids for ids, _ in samples]), padded(samples)[1]),
    ],
)
def test_what_changes_no_sample_stays_one_batch(collate: Any) -> None:
    assert groups(CollateApart(collate)(items())) == [[0, 1, 2, 3, 4, 5]]


def test_images_of_one_size_stay_one_batch() -> None:
    images = [ViewSample((torch.randn(3, 8, 8), place), place, 100 + place) for place in range(5)]
    (batch,) = CollateApart(default_collate)(images)
    assert batch.batch[0].shape == (5, 3, 8, 8) and batch.items.tolist() == [0, 1, 2, 3, 4]


def test_graphs_stay_one_batch() -> None:
    data = pytest.importorskip("torch_geometric.data")
    graphs = [
        ViewSample(data.Data(x=torch.randn(size, 2), edge_index=torch.zeros(2, size, dtype=torch.long)), place, 100)
        for place, size in enumerate(LENGTHS)
    ]
    (batch,) = CollateApart(data.Batch.from_data_list)(graphs)
    assert batch.batch.num_graphs == len(LENGTHS)


def test_a_batch_that_nothing_is_known_of_is_one_sample() -> None:
    class Closed:
        __slots__ = ("samples",)

        def __init__(self, samples: list[Any]) -> None:
            self.samples = samples

    assert groups(CollateApart(Closed)(items())) == [[0], [1], [2], [3], [4], [5]]


def test_a_batch_that_holds_itself() -> None:
    class Loop:
        def __init__(self, samples: list[Any]) -> None:
            self.me, self.ids = self, padded(samples)[0]

    assert sorted(place for group in groups(CollateApart(Loop)(items())) for place in group) == [0, 1, 2, 3, 4, 5]


def test_what_can_not_collate_one() -> None:
    def pairs(samples: list[Any]) -> Any:
        return default_collate([samples[0][1], samples[1][1]])

    with pytest.raises(ArgumentError, match=r"pairs can't collate one sample alone \(IndexError.* without cached"):
        CollateApart(pairs)(items())
