"""Projects on transformers: random weights from a configuration, batches as its collators make them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTForImageClassification,
)

from lightning_ckptkd import StudentProxy, TeacherCache
from lightning_ckptkd.teachers import FeatureMatching, Mixup
from tests.projects import DigitsData, digits
from tests.real_projects.text import PAD, VOCABULARY, encode, passages
from tests.real_projects.whole_way import Way, accuracy_of

BERT = {
    "vocab_size": VOCABULARY,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "num_labels": 4,
    "initializer_range": 0.2,
}


def pad(rows: list[Tensor], value: int) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value)


class TextData(LightningDataModule):
    """Passages padded to the longest of their batch. What stands in the padding is nobody's business."""

    def collate(self, samples: list[tuple[list[str], int]]) -> dict[str, Tensor]:
        rows = [encode(words) for words, _ in samples]
        return {
            "input_ids": pad(rows, 3),
            "attention_mask": pad([torch.ones_like(row) for row in rows], 0),
            "labels": torch.tensor([label for _, label in samples]),
        }

    def loader(self, seed: int, count: int, **options: Any) -> DataLoader[Any]:
        return DataLoader(passages(seed, count, 4, 24), 16, collate_fn=self.collate, **options)

    def train_dataloader(self) -> DataLoader[Any]:
        return self.loader(0, 128, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.loader(1, 96)


class TaggedData(TextData):
    """Each word is a number, a capitalised word, another word or a sign; the first of a passage has no tag."""

    def collate(self, samples: list[tuple[list[str], int]]) -> dict[str, Tensor]:
        batch = super().collate(samples)
        tags = [torch.tensor([-100, *(self.tag(word) for word in words[1:])]) for words, _ in samples]
        return {**batch, "labels": pad(tags, -100)}

    @staticmethod
    def tag(word: str) -> int:
        return 0 if word[0].isdigit() else 1 if word[0].isupper() else 2 if word[0].isalpha() else 3


class BlockData(TextData):
    """Blocks of equal length, as language models are trained on."""

    def loader(self, seed: int, count: int, **options: Any) -> DataLoader[Any]:
        return DataLoader(passages(seed, count, 12, 12), 16, collate_fn=self.collate, **options)

    def collate(self, samples: list[tuple[list[str], int]]) -> dict[str, Tensor]:
        rows = torch.stack([encode(words) for words, _ in samples])
        return {"input_ids": rows, "attention_mask": torch.ones_like(rows), "labels": rows.clone()}


class ImageData(DigitsData):
    """As an image processor gives them."""

    @staticmethod
    def collate(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        images, labels = zip(*samples, strict=True)
        return {"pixel_values": torch.stack(images), "labels": torch.stack(labels)}

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(digits(0, self.train_size), 32, shuffle=True, collate_fn=self.collate)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(digits(1000, 1100), 32, collate_fn=self.collate)


class Finetuning(LightningModule):
    """As the fine-tuning tutorials write it: the network computes its loss where it is given labels."""

    def __init__(self, network: nn.Module, num_labels: int = 4, shift: bool = False) -> None:
        super().__init__()
        self.model, self.shift = network, shift
        self.accuracy = MulticlassAccuracy(num_labels, average="micro", ignore_index=-100)

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self(**batch).loss
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        logits, labels = self(**batch).logits, batch["labels"]
        if self.shift:
            logits, labels = logits[:, :-1], labels[:, 1:]
        self.accuracy(logits.flatten(0, -2), labels.flatten())
        self.log("val_acc", self.accuracy)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def bert(kind: Any = BertForSequenceClassification, size: int = 32) -> nn.Module:
    torch.manual_seed(size)
    return kind(BertConfig(**BERT, hidden_size=size, intermediate_size=2 * size))


def gpt(size: int = 32) -> nn.Module:
    torch.manual_seed(size)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=size, n_layer=1, n_head=2, bos_token_id=PAD, eos_token_id=PAD
    )
    return GPT2LMHeadModel(config)


def vit(size: int = 32) -> nn.Module:
    torch.manual_seed(size)
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=size,
            intermediate_size=2 * size,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=8,
            patch_size=4,
            num_channels=1,
            num_labels=10,
        )
    )


def classes(network: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    found = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    return found.logits.argmax(1), batch["labels"]


def unmasked(network: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return network(input_ids=batch["input_ids"]).logits.argmax(1), batch["labels"]


def tags(network: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    found = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.argmax(-1)
    tagged = batch["labels"] != -100
    return found[tagged], batch["labels"][tagged]


def next_words(network: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    found = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.argmax(-1)
    return found[:, :-1], batch["labels"][:, 1:]


CLASSIFIED = Way(lambda: Finetuning(bert()), TextData, lambda: bert(size=16), accuracy_of(classes))
TAGGED = Way(
    lambda: Finetuning(bert(BertForTokenClassification)),
    TaggedData,
    lambda: bert(BertForTokenClassification, 16),
    accuracy_of(tags),
)
LANGUAGE = Way(
    lambda: Finetuning(gpt(), VOCABULARY, shift=True),
    BlockData,
    lambda: gpt(16),
    accuracy_of(next_words),
)


def test_classification_with_masks(tmp_path: Path) -> None:
    harvest = CLASSIFIED.harvest(tmp_path)
    module = CLASSIFIED.distil(tmp_path, harvest)
    masked, without = (accuracy_of(way)(module.student, TextData()) for way in (classes, unmasked))
    assert masked != without, "padding matters, so that the equalities above say that masks were used"


def test_token_classification(tmp_path: Path) -> None:
    harvest = TAGGED.harvest(tmp_path)
    TAGGED.distil(tmp_path, harvest)


def images(network: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return network(pixel_values=batch["pixel_values"]).logits.argmax(1), batch["labels"]


IMAGES = Way(lambda: Finetuning(vit(), 10), ImageData, lambda: vit(16), accuracy_of(images))


def test_images(tmp_path: Path) -> None:
    harvest = IMAGES.harvest(tmp_path, student_proxy=StudentProxy(vit(16), steps=4, candidates=2, batch_size=16))
    document = IMAGES.check_selection(harvest)
    assert all(entry["student_information"] is not None for entry in document["snapshots"])
    assert all(entry["input_information"] is not None for entry in document["snapshots"])
    IMAGES.distil(tmp_path, harvest, cache=TeacherCache(tmp_path / "cache"), mix=Mixup())
    IMAGES.distil(
        tmp_path,
        harvest,
        feature_matching=FeatureMatching("vit.layernorm", "model.vit.layernorm", 16, 32, spatial=False),
    )


def test_a_causal_language_model(tmp_path: Path) -> None:
    harvest = LANGUAGE.harvest(tmp_path)
    module = LANGUAGE.distil(tmp_path, harvest, cache=TeacherCache(tmp_path / "cache"))
    assert module.objective.task is not None
    assert module.objective.task.name == "causal_lm"
