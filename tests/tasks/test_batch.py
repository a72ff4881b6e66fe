from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch_geometric.data import Batch as GraphBatch
from torch_geometric.data import Data

from lightning_ckptkd.tasks.batch import Batch, describe, join, split, tensors_in

META = torch.device("meta")  # a device other than the CPU that each machine has


class Encoding(UserDict[str, Tensor]):
    """As transformers' BatchEncoding: a mapping that torch does not know, which ``to`` moves itself."""

    def to(self, device: torch.device) -> Encoding:
        self.data = {name: value.to(device) for name, value in self.data.items()}
        return self


def graphs() -> Any:
    parts = [Data(x=torch.randn(n, 2), edge_index=torch.zeros(2, 1).long(), y=torch.tensor([n])) for n in (2, 3)]
    return GraphBatch.from_data_list(parts)


def inputs_of_every_kind() -> list[Any]:
    x, ids = torch.randn(2, 3), torch.ones(2, 3).long()
    return [
        x,
        (x, ids),
        [x, {"a": ids}],
        {"input_ids": ids, "meta": (x, ["name", "other"])},
        Encoding(input_ids=ids, x=x),
        pack_sequence([torch.randn(3, 2), torch.randn(1, 2)]),
        graphs(),
        {"graph": graphs()},
    ]


@pytest.mark.parametrize("place", range(8))
def test_every_kind_moves_and_the_original_stays(place: int) -> None:
    inputs = inputs_of_every_kind()[place]
    batch = Batch(inputs, torch.zeros(2).long(), (inputs, "whole"))
    moved = batch.to(META)
    assert type(moved.inputs) is type(inputs)
    devices = {tensor.device for tensor in tensors_in((moved.inputs, moved.targets, moved.whole))}
    on_cpu = [tensor for tensor in tensors_in(moved.inputs) if tensor.device.type == "cpu"]
    assert devices - {torch.device("cpu")} == {META}
    # the lengths of packed sequences stay on the CPU, as torch wants them
    assert len(on_cpu) == isinstance(inputs, PackedSequence)
    assert {tensor.device.type for tensor in tensors_in((batch.inputs, batch.whole))} == {"cpu"}
    assert len(moved) == len(batch) == 2


@pytest.mark.parametrize("place", range(8))
def test_floats_alone_change_their_type(place: int) -> None:
    inputs = inputs_of_every_kind()[place]
    batch = Batch(inputs, torch.zeros(2))
    changed = batch.cast(torch.float64)
    assert type(changed.inputs) is type(inputs)
    assert changed.targets.dtype == torch.float32
    before, after = tensors_in(inputs), tensors_in(changed.inputs)
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        assert new.dtype == (torch.float64 if old.is_floating_point() else old.dtype)
        assert old.dtype != torch.float64
        torch.testing.assert_close(new, old, check_dtype=False)


@pytest.mark.parametrize("place", range(8))
def test_gradients_are_left_behind(place: int) -> None:
    inputs = inputs_of_every_kind()[place]
    for tensor in tensors_in(inputs):
        if tensor.is_floating_point():
            tensor.requires_grad_()
    left = Batch(inputs, None).detached()
    assert not any(tensor.requires_grad for tensor in tensors_in(left.inputs))
    assert any(tensor.requires_grad for tensor in tensors_in(inputs)) == any(
        tensor.is_floating_point() for tensor in tensors_in(inputs)
    )


def test_the_number_of_samples() -> None:
    assert [len(Batch(inputs)) for inputs in inputs_of_every_kind()] == [2] * 8
    assert len(Batch(torch.randn(5, 2), torch.zeros(5))) == 5


def test_what_is_in_it_in_words() -> None:
    assert describe((torch.zeros(2, 3), "a")) == "tuple of 2 (0: float32 tensor of shape (2, 3), 1: str)"
    assert describe(Encoding(a=torch.zeros(2).long())) == "a mapping with 'a': int64 tensor of shape (2,)"
    assert describe(pack_sequence([torch.randn(3, 2), torch.randn(1, 2)])) == "PackedSequence of 2"
    assert describe(graphs()).startswith("DataBatch with 'x': float32 tensor of shape (5, 2), 'edge_index'")
    assert describe([0] * 500).endswith("11: int, ...)")


def test_plain_batches_are_cut_and_joined() -> None:
    x, y = torch.randn(10, 3), torch.arange(10)
    pieces = list(split([Batch(x[:7], y[:7]), Batch(x[7:], y[7:])], 4))
    assert [len(piece) for piece in pieces] == [4, 3, 3]
    [whole] = join(pieces)
    assert torch.equal(whole.inputs, x) and torch.equal(whole.targets, y)


def test_others_stay_as_they_came() -> None:
    masked = Batch({"ids": torch.zeros(8, 3)}, torch.arange(8))
    kept = Batch(torch.zeros(8, 3), torch.arange(8), whole="all of it")
    assert list(split([masked, kept], 4)) == [masked, kept]
    assert join([masked, kept]) == [masked, kept]
    ragged = [Batch(torch.zeros(2, length), torch.arange(2)) for length in (3, 5)]
    assert join(ragged) == ragged
