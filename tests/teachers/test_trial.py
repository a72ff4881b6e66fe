"""Cached logits never depend on which samples shared a batch, or are refused before there are any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from lightning_ckptkd import ArgumentError, CheckpointHarvester, DistillationModule, TeacherCache
from tests.projects import make_trainer

VOCABULARY, CLASSES = 20, 3


class Words(Dataset[Any]):
    """Sequences of 2 to 9 words, or all of 9; their class is that of most words, modulo 3."""

    def __init__(self, length: int | None = None, per_word: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        self.length, self.per_word = length, per_word
        self.sequences = [torch.randint(1, VOCABULARY, (2 + place % 8,), generator=generator) for place in range(64)]

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = self.sequences[index]
        labels = ids % CLASSES
        mask = torch.ones_like(ids)
        if self.length is not None:
            short = (0, self.length - len(ids))
            ids, labels, mask = F.pad(ids, short), F.pad(labels, short, value=-100), F.pad(mask, short)
        found = labels if self.per_word else (self.sequences[index] % CLASSES).mode().values
        return {"input_ids": ids, "attention_mask": mask, "labels": found}


def pad(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """As DataCollatorWithPadding does."""
    names = [name for name in samples[0] if samples[0][name].dim()]
    batch = {
        name: pad_sequence(
            [sample[name] for sample in samples], batch_first=True, padding_value=-100 if name == "labels" else 0
        )
        for name in names
    }
    return {**batch, **{name: torch.stack([s[name] for s in samples]) for name in samples[0] if name not in names}}


class Tagger(nn.Module):
    """A class of each sequence or of each word; what padding and company do to it is by ``reads``."""

    def __init__(self, reads: str = "mask") -> None:
        super().__init__()
        self.reads = reads
        self.embed, self.head = nn.Embedding(VOCABULARY, 8), nn.Linear(8, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        words = self.embed(input_ids)
        if self.reads == "words":
            return self.head(words)
        if self.reads != "padding":
            words = words * attention_mask.unsqueeze(2)
            pooled = words.sum(1) / attention_mask.sum(1, keepdim=True)
        else:
            pooled = words.mean(1)
        if self.reads == "batch":
            pooled = pooled + F.softmax(pooled @ pooled.T, 1) @ pooled
        logits: Tensor = self.head(pooled)
        return logits


class Teacher(LightningModule):
    def __init__(self, reads: str = "mask") -> None:
        super().__init__()
        self.net = Tagger(reads)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.net(input_ids, attention_mask)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self(batch["input_ids"], batch["attention_mask"])
        return F.cross_entropy(logits.flatten(0, -2), batch["labels"].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.05)


def loader(dataset: Dataset[Any], collate: Any = pad) -> DataLoader[Any]:
    return DataLoader(dataset, 16, collate_fn=collate)


def harvest(root: Path, reads: str, dataset: Dataset[Any]) -> Path:
    torch.manual_seed(0)
    make_trainer(root, CheckpointHarvester(root / "harvest"), max_epochs=2).fit(Teacher(reads), loader(dataset))
    return root / "harvest"


def distil(root: Path, reads: str, dataset: Dataset[Any], **options: Any) -> DistillationModule:
    torch.manual_seed(1)
    module = DistillationModule(Tagger("words" if reads == "words" else "mask"), Teacher(reads), **options)
    make_trainer(root, max_epochs=2, limit_val_batches=0).fit(module, loader(dataset), loader(dataset))
    return module


def cached_logits(folder: Path) -> Tensor:
    from safetensors.torch import load_file

    (chunk,) = folder.glob("chunk-*.safetensors")
    return load_file(chunk)["logits"].float()


@pytest.mark.parametrize("reads", ["mask", "padding"])
def test_logits_of_ragged_samples_are_those_of_each_alone(tmp_path: Path, reads: str) -> None:
    words = Words()
    folder = harvest(tmp_path, reads, words)
    options = {"snapshots": folder, "choice": [1], "acceleration": "none"}
    module = distil(tmp_path, reads, words, cache=TeacherCache(tmp_path / "cache", dtype="fp32"), **options)
    assert module.teachers is not None
    (teacher,) = module.teachers.members
    batches = [pad([words[index]]) for index in range(len(words))]
    with torch.no_grad():
        alone = torch.cat([teacher(batch["input_ids"], batch["attention_mask"]) for batch in batches])
        together = pad([words[index] for index in range(len(words))])
        padded = teacher(together["input_ids"], together["attention_mask"])
    cached = cached_logits(tmp_path / "cache")[:, 0]
    torch.testing.assert_close(cached, alone, rtol=1e-5, atol=1e-5)
    if reads == "padding":
        assert float((padded - alone).abs().max()) > 0.1 * float(alone.abs().max()), "they would be others, padded"
    else:
        live = distil(tmp_path, reads, words, **options)
        for one, other in zip(live.student.parameters(), module.student.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_logits_that_depend_on_the_batch_are_refused(tmp_path: Path) -> None:
    for length in (9, None):
        words = Words(length)
        folder = harvest(tmp_path / str(length), "batch", words)
        options = {"snapshots": folder, "choice": [1], "acceleration": "none"}
        told = r"logits on sample \d+ depend on which samples share its batch: they differ by .*live teachers: leave"
        with pytest.raises(ArgumentError, match=told):
            distil(tmp_path, "batch", words, cache=TeacherCache(tmp_path / "cache"), **options)
        assert not list((tmp_path / "cache").glob("chunk-*"))
        distil(tmp_path, "batch", words, **options)


def test_logits_of_several_shapes_are_refused_and_padded_ones_are_not(tmp_path: Path) -> None:
    words = Words(per_word=True)
    options = {"snapshots": harvest(tmp_path, "words", words), "choice": [1], "acceleration": "none"}
    told = r"have the shape \(2, 3\) for item \d+ and \(6, 3\) for item \d+, .*Pad samples to one length in the"
    with pytest.raises(ArgumentError, match=told):
        distil(tmp_path, "words", words, cache=TeacherCache(tmp_path / "cache"), **options)
    assert not list((tmp_path / "cache").glob("chunk-*"))
    live = distil(tmp_path, "words", words, **options)
    cache = TeacherCache(tmp_path / "cache", dtype="fp32")
    cached = distil(tmp_path, "words", Words(9, per_word=True), cache=cache, **options)
    for one, other in zip(live.student.parameters(), cached.student.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


class OwnNoise(Words):
    """A transform that draws from a generator of its own, or from torch's."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0) if own else None

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = super().__getitem__(index)
        dropped = torch.rand(len(sample["input_ids"]), generator=self.generator) < 0.3
        return {**sample, "input_ids": sample["input_ids"].masked_fill(dropped, 0)}


def test_a_transform_with_its_own_generator_is_refused_before_all_are_cached(tmp_path: Path) -> None:
    options = {"snapshots": harvest(tmp_path, "mask", Words()), "choice": [1], "acceleration": "none"}
    with pytest.raises(ArgumentError, match=r"sample \d+ \(view 0\) is another one each time .*global generator, or"):
        distil(tmp_path, "mask", OwnNoise(own=True), cache=TeacherCache(tmp_path / "cache"), **options)
    assert not list((tmp_path / "cache").glob("chunk-*"))
    distil(tmp_path, "mask", OwnNoise(own=False), cache=TeacherCache(tmp_path / "cache"), **options)
