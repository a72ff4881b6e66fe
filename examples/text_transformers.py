"""Classifying text with Hugging Face's transformers.

A mapping goes to the network by keyword, so that the mask reaches it; logits are found in the output object. Token
ids are not numbers: rule="loss" ranks by what the snapshots tell of the label alone. Needs transformers.
"""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

from lightning_ckptkd import CheckpointHarvester, DistillationModule, MISelector


class TextClassifier(LightningModule):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def training_step(self, batch):
        return self.network(**batch).loss

    def validation_step(self, batch):
        self.log("loss", self.network(**batch).loss)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-3)


def make_network(layers):  # or BertForSequenceClassification.from_pretrained(...)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
    return BertForSequenceClassification(BertConfig(num_hidden_layers=layers, num_labels=2, **sizes))


texts = []
for number in range(64):
    length = 4 + number % 5
    ids = torch.randint(1, 50, (length,))
    texts.append({"input_ids": ids, "labels": int(ids[0] < 25)})


def collate(texts):  # as DataCollatorWithPadding
    ids = torch.nn.utils.rnn.pad_sequence([text["input_ids"] for text in texts], batch_first=True)
    labels = torch.tensor([text["labels"] for text in texts])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}


train = DataLoader(texts, 16, shuffle=True, collate_fn=collate)
val = DataLoader(texts, 16, collate_fn=collate)

teacher = TextClassifier(make_network(layers=2))
callbacks = [CheckpointHarvester(dirpath="harvest", submodule="network"), MISelector(rule="loss", num_teachers=2)]
Trainer(max_epochs=3, callbacks=callbacks).fit(teacher, train, val)

student = DistillationModule(student=make_network(layers=1), teacher=teacher.network, snapshots="harvest")
Trainer(max_epochs=2).fit(student, train, val)
