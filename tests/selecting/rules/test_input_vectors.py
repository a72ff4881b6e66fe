"""X of whatever the inputs are: token ids are no numbers, and pixels are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from lightning_ckptkd import ArgumentError
from lightning_ckptkd.information.folds import assign_folds
from lightning_ckptkd.information.gaussian import gaussian_gains
from lightning_ckptkd.information.inputs import pool_inputs, principal_components, token_bags
from lightning_ckptkd.selecting.probe import Probe
from lightning_ckptkd.selecting.rules.input_vectors import input_vectors
from lightning_ckptkd.tasks.batch import Batch

N, L, VOCABULARY = 300, 12, 2000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sentences() -> tuple[Tensor, Tensor]:
    """Ids of which a topic decides which are frequent, and their mask."""
    topics = torch.rand(3, VOCABULARY, generator=generator()) ** 4000
    ids = torch.multinomial(topics[torch.arange(N) % 3], L, replacement=True, generator=generator(1))
    mask = torch.arange(L) < torch.randint(1, L + 1, (N, 1), generator=generator(2))
    return ids, mask


def probe(inputs: Any) -> Probe:
    return Probe((Batch(inputs, torch.zeros(N).long()),))


def values_of(inputs: Any) -> Tensor:
    found = input_vectors(probe(inputs)).values
    assert found is not None
    return found


def information(x: Tensor, features: Tensor) -> float:
    return float(gaussian_gains(principal_components(x, 15), features, assign_folds(N, 5, 0)).mean())


def test_renumbering_the_vocabulary_moves_nothing() -> None:
    """Exactly: only which ids are equal counts."""
    ids, mask = sentences()
    renumbered = torch.randperm(50_000, generator=generator(3))[ids]
    found, other = (values_of({"input_ids": each, "attention_mask": mask}) for each in (ids, renumbered))
    assert torch.equal(found, other)
    features = torch.nn.functional.one_hot(torch.arange(N) % 3, 3).double()
    features = features + 0.1 * torch.randn(N, 3, generator=generator(4))
    assert information(found, features) == information(other, features) > 0.1
    as_numbers = [information(each.double(), features) for each in (ids, renumbered)]
    assert abs(as_numbers[0] - as_numbers[1]) > 1e-6, "as numbers it would move"


def test_masked_positions_do_not_count() -> None:
    ids, mask = sentences()
    for name, given in (("attention_mask", mask.long()), ("mask", mask), ("padding_mask", ~mask)):
        garbage = torch.where(mask, ids, torch.randint(VOCABULARY, ids.shape, generator=generator(5)))
        zeros = torch.where(mask, ids, 0)
        assert torch.equal(values_of({"input_ids": garbage, name: given}), values_of({"input_ids": zeros, name: given}))
    lengths = mask.sum(1)
    assert torch.equal(values_of((zeros, lengths)), values_of({"input_ids": zeros, "attention_mask": mask}))


def test_batches_that_were_padded_apart() -> None:
    ids, mask = sentences()
    whole = values_of({"input_ids": ids, "attention_mask": mask})
    batches = []
    for rows in torch.arange(N).split(50):
        longest = int(mask[rows].sum(1).max())
        inputs = {"input_ids": ids[rows, :longest], "attention_mask": mask[rows, :longest]}
        batches.append(Batch(inputs, torch.zeros(50).long()))
    found = input_vectors(Probe(tuple(batches))).values
    assert found is not None and torch.equal(found, whole)


def test_bags_by_hand() -> None:
    ids = torch.tensor([7, 7, 9, 9, 5, 9])
    bags = token_bags(ids, torch.tensor([0, 0, 0, 1, 1, 1]), 3, num_bins=2)
    # 9 is the most frequent, then 7, then 5, which shares the bin of 9
    assert bags.tolist() == [[1 / 3, 2 / 3], [1.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("inputs", [lambda ids: ids, lambda ids: ids.int(), lambda ids: {"input_ids": ids}])
def test_ids_without_a_mask(inputs: Any) -> None:
    ids, _ = sentences()
    found = input_vectors(probe(inputs(ids)))
    assert found.told.endswith("are taken for token ids, by how often each is there.")
    assert found.values is not None and torch.allclose(found.values.sum(1), torch.ones(N).double())


@pytest.mark.parametrize("shape", [(3, 32, 32), (32, 32, 3), (32, 32)])
def test_images_of_integers_are_images(shape: tuple[int, ...]) -> None:
    images = torch.randint(256, (N, *shape), dtype=torch.uint8, generator=generator())
    channels_first = images.permute(0, 3, 1, 2) if shape[-1] == 3 else images
    found = input_vectors(probe(images))
    assert found.told == "" and found.values is not None
    assert torch.equal(found.values, pool_inputs(channels_first.float()))


def test_numbers_are_as_they_were() -> None:
    for x in (torch.randn(N, 5), torch.randn(N, 3, 20, 20), torch.rand(N, 4) < 0.5):
        assert torch.equal(values_of(x), pool_inputs(x))
        assert torch.equal(values_of({"x": x}), pool_inputs(x)), "one part of a mapping is as if it was alone"


def test_several_parts_count_the_same() -> None:
    image, meta, kind = torch.randn(N, 3, 8, 8), 1e4 * torch.randn(N, 2), torch.arange(N) % 5
    found = values_of((image, meta, kind))
    variances = [part.var(0, correction=0).sum() for part in found.split([192, 2, 512], 1)]
    torch.testing.assert_close(torch.stack(variances), torch.ones(3).double())


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        (pack_sequence([torch.randn(2, 3)] * N), "the input is PackedSequence"),
        ({"x": [torch.randn(N, 2)]}, "'x' is list of 1"),
        (torch.ones(N, 4, dtype=torch.long), "the same for each sample"),
        ((torch.randn(7, N, 3),), "'0' is float32 tensor of shape"),
    ],
)
def test_what_is_left_out(inputs: Any, told: str) -> None:
    found = input_vectors(probe(inputs))
    assert found.values is None and told in found.told and "\n" not in found.told
    viewed = input_vectors(probe(inputs), lambda batch: torch.arange(len(batch.targets))[:, None].float())
    assert viewed.values is not None and viewed.values.shape == (N, 1)


@pytest.mark.parametrize(
    ("view", "told"),
    [
        (lambda batch: batch.inputs[:, 0], r"shape \(N, D\), but gives float32 tensor of shape \(300,\)"),
        (lambda batch: batch.inputs[:5], "for a batch of 300 samples"),
        (lambda batch: batch.inputs / 0, "not finite"),
    ],
)
def test_views_that_are_none(view: Any, told: str) -> None:
    with pytest.raises(ArgumentError, match=f"input_view.*{told}"):
        input_vectors(probe(torch.randn(N, 3)), view)
