"""Features of sequences: which dimension counts samples, and padding stays out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from lightning_ckptkd import ArgumentError
from lightning_ckptkd.selecting.features import extract_features
from lightning_ckptkd.selecting.layers import Layers
from lightning_ckptkd.selecting.probe import Probe
from lightning_ckptkd.selecting.rows import ProbeRows
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.tasks.multiclass import Multiclass

N, L, D = 10, 7, 4
LENGTHS = torch.arange(N) % L + 1
MASK = torch.arange(L) < LENGTHS[:, None]


def features_of(module: nn.Module, *batches: Batch, layer: str = "rnn", size: int = 64) -> Tensor:
    rows = ProbeRows.of(Probe(batches), Multiclass(), None, size, 0)
    found = extract_features(module.eval(), rows, Layers(layer, False, None, False)).pooled
    assert found is not None
    return found


def batch(count: int = N, length: int = L, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.randn(count, length, 3, generator=generator), torch.arange(count) % 2)


class Recurrent(nn.Module):
    """A sequence-first or batch-first LSTM on sequences (N, L, 3)."""

    def __init__(self, batch_first: bool, kind: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = kind(3, D, batch_first=batch_first)  # type: ignore[call-arg]
        self.after = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.rnn(x if self.rnn.batch_first else x.transpose(0, 1))
        output = self.after(output)
        return (output if self.rnn.batch_first else output.transpose(0, 1)).mean(1)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("layer", ["rnn", "after"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_vector_for_each_sample(batch_first: bool, layer: str, kind: type[nn.RNNBase]) -> None:
    module = Recurrent(batch_first, kind)
    found = features_of(module, batch(), layer=layer, size=4)
    torch.testing.assert_close(found, module(batch().inputs).detach())


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("counts", [(N,), (N, N), (N, 3), (3, N)])
def test_as_many_samples_as_positions(batch_first: bool, counts: tuple[int, ...]) -> None:
    """The last batch tells, or one with a sample less."""
    module = Recurrent(batch_first)
    batches = [Batch(batch(count, N, seed).inputs, torch.zeros(count).long()) for seed, count in enumerate(counts)]
    expected = torch.cat([module(one.inputs) for one in batches]).detach()
    torch.testing.assert_close(features_of(module, *batches, layer="after"), expected)


def test_what_no_batch_tells_is_refused() -> None:
    class Whole(Recurrent):
        def forward(self, batch: Any) -> Tensor:
            return super().forward(batch[0])

    module, one = Whole(False), batch(N, N)
    closed = Batch(one.inputs, one.targets, (one.inputs, one.targets))
    with pytest.raises(ArgumentError, match=r"shape \(10, 10, 4\) for 10 samples.*probe= dataloader of another batch"):
        features_of(module, closed, layer="after")
    other = batch(3, N)
    found = features_of(module, closed, Batch(other.inputs, other.targets, (other.inputs, other.targets)))
    torch.testing.assert_close(found[N:], Recurrent(False)(other.inputs).detach())


class Masked(nn.Module):
    """Features of each position, (N, L, D) or (L, N, D)."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first, self.rnn = first, nn.Identity()

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        found: Tensor = self.rnn(x if self.first else x.transpose(0, 1))
        return found.mean(0 if not self.first else 1)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    "inputs",
    [
        lambda x: {"x": x, "attention_mask": MASK.long()},
        lambda x: {"x": x, "mask": MASK},
        lambda x: {"x": x, "src_key_padding_mask": ~MASK},
        lambda x: {"x": x, "lengths": LENGTHS},
    ],
)
def test_padding_does_not_enter_features(first: bool, inputs: Any) -> None:
    clean = batch().inputs
    expected = torch.stack([row[:length].mean(0) for row, length in zip(clean, LENGTHS, strict=True)])
    for filled in (0.0, 1e3):
        x = clean.masked_fill(~MASK[:, :, None], filled)
        found = features_of(Masked(first), Batch(inputs(x), torch.zeros(N).long()))
        torch.testing.assert_close(found, expected)


def test_packed_sequences() -> None:
    class Packs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(3, D)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            last: Tensor = self.rnn(packed)[1][0]
            return last

    module, x = Packs(), batch().inputs
    found = features_of(module, Batch((x, LENGTHS), torch.zeros(N).long()))
    expected = torch.stack(
        [module.rnn(row[:length, None])[0].mean((0, 1)) for row, length in zip(x, LENGTHS, strict=True)]
    )
    torch.testing.assert_close(found, expected.detach())
