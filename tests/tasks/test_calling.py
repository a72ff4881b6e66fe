from __future__ import annotations

import inspect
import warnings
from collections import UserDict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils._pytree import tree_flatten
from torch_geometric.data import Batch as GraphBatch
from torch_geometric.data import Data
from torch_geometric.nn import GCN, global_mean_pool

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.tasks.batch import Batch, join
from lightning_ckptkd.tasks.calling import _tell_of_left_out, call, takes_whole
from lightning_ckptkd.tasks.reading import BatchReader

X = torch.randn(4, 3)
IDS = torch.randint(9, (4, 6))
MASK = torch.ones(4, 6).long()
INDEX = torch.arange(4)


@pytest.fixture(autouse=True)
def _told_again() -> Iterator[None]:
    _tell_of_left_out.cache_clear()
    yield


def network(forward: Callable[..., Any]) -> nn.Module:
    """A module whose forward is this function, without self."""

    def bound(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    own = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    signature = inspect.signature(forward)
    bound.__signature__ = signature.replace(parameters=own + list(signature.parameters.values()))  # type: ignore[attr-defined]
    return type("Net", (nn.Module,), {"forward": bound})()


HF = {"input_ids": IDS, "attention_mask": MASK}


@pytest.mark.parametrize(
    ("forward", "inputs", "expected"),
    [
        (lambda x: x, X, X),
        (lambda x: x, {"image": X}, X),
        (lambda x: x, {"image": X, "index": INDEX}, X),
        (lambda image: image, {"image": X, "index": INDEX, "path": ["a"] * 4}, X),
        (lambda x, **kwargs: (x, kwargs), {"image": X, "index": INDEX}, (X, {})),
        (lambda x, mask=None: (x, mask), {"image": X, "mask": MASK}, (X, MASK)),
        (lambda input_ids, attention_mask: (input_ids, attention_mask), HF, (IDS, MASK)),
        (lambda attention_mask, input_ids: (attention_mask, input_ids), HF, (MASK, IDS)),
        (
            lambda input_ids, attention_mask=None, labels=None: (input_ids, attention_mask, labels),
            HF,
            (IDS, MASK, None),
        ),
        (lambda *, input_ids, attention_mask: (input_ids, attention_mask), HF, (IDS, MASK)),
        (lambda **inputs: inputs, HF, HF),  # a module that hands all on
        (lambda input_ids, **rest: (input_ids, rest), HF, (IDS, {"attention_mask": MASK})),
        # DistilBERT swallows any keyword
        (
            lambda input_ids=None, **rest: (input_ids, rest),
            {**HF, "index": INDEX, "text": ["a"] * 4},
            (IDS, {"attention_mask": MASK}),
        ),
        # so do transformers' others, none of whose parameters is required
        (lambda pixel_values=None, **rest: (pixel_values, rest), {"image": X, "index": INDEX}, (X, {})),
        (lambda inputs: inputs, {"tokens": IDS, "lengths": INDEX}, {"tokens": IDS, "lengths": INDEX}),
        (lambda a, b: (a, b), (X, IDS), (X, IDS)),
        (lambda a, b=None: (a, b), (X, IDS), (X, IDS)),
        (lambda *parts: parts, (X, IDS), (X, IDS)),
        (lambda pair: pair, (X, IDS), (X, IDS)),
        (lambda views: views, [X, X], [X, X]),
        (lambda image, meta: (image, meta), {"image": X, "meta": MASK, "index": INDEX}, (X, MASK)),
    ],
)
def test_what_forward_gets(forward: Callable[..., Any], inputs: Any, expected: Any) -> None:
    found = call(network(forward), Batch(inputs))
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected) and all(found[name] is expected[name] for name in expected)
    elif isinstance(expected, (tuple, list)):
        for one, other in zip(found, expected, strict=True):
            assert one is other or one == other
    else:
        assert found is expected


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda **inputs: inputs, {"image": X}),  # a module that hands all on
        (lambda *, image: image, X),
        (lambda ids=None, image=None, **rest: (ids, image, rest), (None, X, {})),
        (lambda x: x, X),
        (lambda pixels=None, **rest: (pixels, rest), (X, {})),
        (lambda x, image=None: (x, image), (X, None)),
        (lambda *parts, **rest: (parts, rest), ((X,), {})),
    ],
)
def test_an_array_that_was_alone(forward: Callable[..., Any], expected: Any) -> None:
    read = BatchReader()({"image": X, "label": INDEX})
    for batch in (read, read[0:4], *join([read]), read.to("cpu"), read.cast(X.dtype), read.detached()):
        found, wanted = tree_flatten(call(network(forward), batch)), tree_flatten(expected)
        assert found[1] == wanted[1]
        assert all(one is other or torch.equal(one, other) for one, other in zip(found[0], wanted[0], strict=True))


def test_a_mapping_that_torch_does_not_know() -> None:
    found = call(network(lambda input_ids, attention_mask: (input_ids, attention_mask)), Batch(UserDict(HF)))
    assert found == (IDS, MASK) or (found[0] is IDS and found[1] is MASK)


@pytest.mark.parametrize(
    ("forward", "inputs"),
    [
        (lambda a, b, c: a, (X, IDS)),
        (lambda tokens, lengths: tokens, {"image": X, "meta": MASK}),
        (lambda input_ids, attention_mask: input_ids, {"input_ids": IDS}),
        (lambda: None, {"image": X}),
    ],
)
def test_what_can_not_be_called(forward: Callable[..., Any], inputs: Any) -> None:
    with pytest.raises(
        ArgumentError, match=r"Net.forward takes .* and the inputs are .* Say which of them with input_keys"
    ):
        call(network(forward), Batch(inputs))


def test_what_is_needed_and_left_out_is_told_once() -> None:
    net = network(lambda input_ids: input_ids)
    with pytest.warns(UserWarning, match="Net.forward does not take attention_mask of the batch"):
        call(net, Batch(HF))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(net, Batch(HF))
        call(net, Batch({"input_ids": IDS, "index": INDEX}))  # nobody misses it


class WholeBatch(LightningModule):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["image"] * 2


class OneInput(LightningModule):
    def forward(self, x: Tensor) -> Tensor:
        return x * 3


def test_a_forward_that_takes_the_whole_batch() -> None:
    whole = {"image": X, "label": INDEX}
    assert takes_whole(WholeBatch()) and not takes_whole(OneInput())
    batch = Batch(X, INDEX, whole)
    assert torch.equal(call(WholeBatch(), batch), X * 2)
    assert torch.equal(call(OneInput(), batch), X * 3)


class Masked(nn.Module):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return input_ids if attention_mask is None else input_ids * attention_mask


def test_compiled_networks_take_what_is_in_them() -> None:
    batch = Batch({**HF, "attention_mask": MASK * 0, "index": INDEX})
    compiled: Any = torch.compile(Masked(), backend="eager")
    assert int(call(compiled, batch).sum()) == 0
    assert takes_whole(torch.compile(WholeBatch(), backend="eager"))  # type: ignore[arg-type]


def test_packed_sequences_are_one_input() -> None:
    packed = pack_sequence([torch.randn(3, 2), torch.randn(1, 2)])
    lstm = nn.LSTM(2, 5)
    output, _ = call(lstm, Batch(packed))
    assert torch.equal(output.data, lstm(packed)[0].data)


class Graphs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = GCN(2, 4, 2, 3)

    def forward(self, data: Any) -> Tensor:
        pooled: Tensor = global_mean_pool(self.net(data.x, data.edge_index), data.batch)
        return pooled


def test_graphs() -> None:
    parts = [Data(x=torch.randn(n, 2), edge_index=torch.tensor([[0], [1]]), y=torch.tensor([n])) for n in (2, 3)]
    batch: Any = GraphBatch.from_data_list(parts)
    net = Graphs()
    assert call(net, Batch(batch, batch.y)).shape == (2, 3)
    by_parts = call(net.net, Batch(batch, batch.y))  # forward(x, edge_index, ...)
    assert torch.equal(by_parts, net.net(batch.x, batch.edge_index))
    assert torch.equal(call(net.net, Batch((batch.x, batch.edge_index), batch.y)), by_parts)
