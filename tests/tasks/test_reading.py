from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence
from torch_geometric.data import Batch as GraphBatch
from torch_geometric.data import Data

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.tasks.reading import BatchReader

X = torch.randn(4, 3)
Y = torch.arange(4)
W = torch.rand(4)
IDS = torch.randint(9, (4, 6))
MASK = torch.ones(4, 6).long()


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, Tensor):
        return found is expected
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and list(found) == list(expected)
            and all(same(found[k], expected[k]) for k in found)
        )
    return type(found) is type(expected) and len(found) == len(expected) and all(map(same, found, expected))


Named = namedtuple("Named", "tokens lengths label")


@pytest.mark.parametrize(
    ("batch", "inputs"),
    [
        ((X, Y), X),
        ([X, Y], X),
        ((X, Y, {"path": ["a", "b"]}), X),
        (((IDS, MASK), Y), (IDS, MASK)),
        (({"input_ids": IDS, "attention_mask": MASK}, Y), {"input_ids": IDS, "attention_mask": MASK}),
        ({"image": X, "label": Y}, X),
        ({"input_ids": IDS, "attention_mask": MASK, "labels": Y}, {"input_ids": IDS, "attention_mask": MASK}),
        ({"image": X, "index": W, "target": Y}, {"image": X, "index": W}),
        ({"image": X, "mask": Y}, X),  # torchgeo's
        ({"image": X, "mask": W, "label": Y}, {"image": X, "mask": W}),
        (Named(IDS, W, Y), {"tokens": IDS, "lengths": W}),
    ],
)
def test_without_options(batch: Any, inputs: Any) -> None:
    found = BatchReader()(batch)
    assert found.targets is Y and len(found) == 4 and found.whole is None
    assert same(found.inputs, inputs)
    assert BatchReader(whole=True)(batch).whole is batch


@pytest.mark.parametrize(
    ("options", "batch", "inputs"),
    [
        ({"target_key": "1.0"}, (X, (Y, W)), X),
        ({"target_key": 0}, (Y, X), X),
        ({"target_key": -1}, (X, Y), X),
        ({"target_key": "1"}, (X, Y), X),
        ({"target_key": 2, "input_keys": [0, 1]}, (IDS, W, Y), (IDS, W)),
        ({"target_key": 2, "input_keys": 0}, (IDS, W, Y), IDS),
        ({"target_key": "age"}, {"image": X, "age": Y}, X),
        ({"target_key": "truth.age"}, {"image": X, "truth": {"age": Y, "sex": W}}, X),
        ({"target_key": "truth.age"}, {"image": X, "truth.age": Y}, X),  # a name with a dot
        ({"input_keys": ["image", "meta"]}, {"image": X, "meta": W, "id": IDS, "label": Y}, {"image": X, "meta": W}),
        ({"input_keys": ["a.image"]}, {"a": {"image": X}, "label": Y}, {"image": X}),
        ({"input_keys": "image"}, {"image": X, "meta": W, "label": Y}, X),
        ({"unpack_batch": lambda batch: (batch[2], batch[0])}, (Y, W, X), X),
    ],
)
def test_with_options(options: dict[str, Any], batch: Any, inputs: Any) -> None:
    found = BatchReader(**options)(batch)
    assert found.targets is Y
    assert same(found.inputs, inputs)


@pytest.mark.parametrize(
    ("options", "batch", "name"),
    [
        ({}, {"image": X, "label": Y}, "image"),
        ({"target_key": "truth.age"}, {"image": X, "truth": {"age": Y}}, "image"),
        ({"input_keys": "image"}, {"image": X, "meta": W, "label": Y}, "image"),
        ({"input_keys": "a.image"}, {"a": {"image": X}, "label": Y}, "image"),
        ({"input_keys": "0.image"}, ({"image": X}, Y), "image"),
        ({}, (X, Y), None),
        ({"input_keys": "0"}, (X, Y), None),
        ({}, {"image": X, "meta": W, "label": Y}, None),
        ({"input_keys": ["image"]}, {"image": X, "meta": W, "label": Y}, None),
        ({"unpack_batch": lambda batch: (batch["image"], batch["label"])}, {"image": X, "label": Y}, None),
    ],
)
def test_the_name_of_an_input_that_is_alone(options: dict[str, Any], batch: Any, name: str | None) -> None:
    read = BatchReader(**options)
    assert read(batch).name == name
    assert options.get("target_key") or read.inputs_only(batch).name == name


def test_graphs() -> None:
    graphs = [Data(x=torch.randn(n, 2), edge_index=torch.zeros(2, 1).long(), y=torch.tensor([n])) for n in (2, 3)]
    batch = GraphBatch.from_data_list(graphs)
    found = BatchReader()(batch)
    assert found.inputs is batch and len(found) == 2
    parts = BatchReader(input_keys=["x", "edge_index", "batch"])(batch).inputs
    assert [tuple(part.shape) for part in parts] == [(5, 2), (2, 2), (5,)]
    with pytest.raises(ArgumentError, match=r"target_key='z' is not in the batch, which is DataBatch with 'x'.*'y'"):
        BatchReader(target_key="z")(batch)


def test_packed_sequences() -> None:
    packed = pack_sequence([torch.randn(3, 2), torch.randn(1, 2)])
    found = BatchReader()((packed, Y[:2]))
    assert found.inputs is packed and len(found) == 2


def test_a_tuple_of_more_than_two_tensors_is_never_guessed() -> None:
    with pytest.raises(
        ArgumentError, match=r"A batch of 3 tensors can't be told.*2: int64 tensor of shape \(4,\)"
    ) as e:
        BatchReader()((IDS, W, Y))
    assert "input_keys and target_key" in str(e.value)
    with pytest.raises(ArgumentError, match=r"target_key=2 leaves several parts .* Say with input_keys"):
        BatchReader(target_key=2)((IDS, W, Y))
    assert BatchReader(target_key=2, input_keys=[0, 1])((IDS, W, Y)).targets is Y


@pytest.mark.parametrize(
    ("options", "batch", "message"),
    [
        ({"target_key": "lable"}, {"image": X, "label": Y}, r"target_key='lable' .* Near names: 'label'"),
        ({"input_keys": ["imag"]}, {"image": X, "label": Y}, r"input_keys='imag' .* Near names: 'image'"),
        ({"target_key": 5}, (X, Y), "target_key=5 is not in the batch, which is tuple of 2"),
        ({"target_key": "count"}, (X, Y), "target_key='count' is not in the batch"),
        ({"target_key": "1.y"}, (X, Y), "target_key='1.y' is not in the batch"),
        ({"target_key": 1}, (X, Y, W), "leaves several parts"),
        ({}, (X, (Y, W)), "The target of a batch should be a tensor, but is tuple of 2.*paths such as '1.0'"),
        ({}, {"image": X, "meta": W}, r"have one of \('y', 'label'"),
        ({}, {"tokens": IDS, "mask": MASK}, "A batch should be"),
        ({}, X, r"A batch should be \(inputs, targets\).*but is float32 tensor of shape \(4, 3\).*rule='full'"),
        ({}, [X], "A batch should be"),
        ({}, ([X, X], [{"boxes": X, "labels": Y}]), "should be a tensor, but is list of 1.*Detection.*rule='full'"),
        ({"unpack_batch": lambda batch: batch[0]}, (X, Y), r"unpack_batch should return \(inputs, targets\)"),
    ],
)
def test_what_can_not_be_told(options: dict[str, Any], batch: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=f"(?s){message}"):
        BatchReader(**options)(batch)


def test_both_ways_of_saying_it() -> None:
    with pytest.raises(ArgumentError, match="unpack_batch says all"):
        BatchReader(target_key=1, unpack_batch=lambda batch: batch)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": IDS, "attention_mask": MASK[:, :5]}, r"attention_mask has the shape \(4, 5\), but input_ids"),
        ({"input_ids": IDS, "attention_mask": MASK[:3]}, r"attention_mask has the shape \(3, 6\)"),
        ({"tokens": IDS, "lengths": W[:3]}, r"lengths has the shape \(3,\), but tokens beside it \(4, 6\)"),
        ({"pixel_values": X, "mask": MASK[:2]}, r"mask has the shape \(2, 6\)"),
    ],
)
def test_a_mask_of_another_length(inputs: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        BatchReader()({**inputs, "labels": Y})
    with pytest.raises(ArgumentError, match=message):
        BatchReader()((inputs, Y))
    taken = [name for name in inputs if name not in ("attention_mask", "lengths", "mask")]
    BatchReader(input_keys=taken)({**inputs, "labels": Y})  # what the error advises


def test_masks_that_fit() -> None:
    BatchReader()({"input_ids": IDS, "attention_mask": torch.ones(4, 1, 6, 6), "labels": Y})
    BatchReader()({"inputs_embeds": torch.randn(4, 6, 8), "attention_mask": MASK, "labels": Y})
    BatchReader()({"pixel_values": torch.randn(4, 3, 8, 8), "mask": torch.ones(4, 16), "labels": Y})


@dataclass
class Sample:
    x: Tensor
    y: Tensor


@pytest.mark.parametrize(
    ("options", "batch", "inputs"),
    [
        ({}, X, X),
        ({}, [X], X),
        ({}, (X, Y), X),
        ({}, {"image": X}, X),
        ({}, {"input_ids": IDS, "attention_mask": MASK}, {"input_ids": IDS, "attention_mask": MASK}),
        ({}, {"image": X, "label": Y}, X),
        ({"input_keys": "image"}, {"image": X, "index": W}, X),
        ({"input_keys": "x"}, Sample(X, Y), X),
        ({"target_key": 0}, (Y, X), X),
    ],
)
def test_prediction_needs_no_target(options: dict[str, Any], batch: Any, inputs: Any) -> None:
    assert same(BatchReader(**options).inputs_only(batch).inputs, inputs)
