"""What Lightning lets projects do: harvested, selected and distilled, in the run and in a new process."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler

from lightning_ckptkd import (
    ArgumentError,
    CheckpointHarvester,
    DistillationModule,
    MISelector,
    StudentProxy,
    TeacherError,
)
from lightning_ckptkd.teachers.transfer_hooks import lend_hooks
from tests.projects import DigitsData, Project, digits, make_trainer


def training() -> DataLoader[Any]:
    return DataLoader(digits(0, 128), 32)


def validation(start: int = 1000, stop: int = 1120) -> DataLoader[Any]:
    return DataLoader(digits(start, stop), 32)


def student() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def way(root: Path, module: Any, *fit: Any, selector: MISelector | None = None, **options: Any) -> MISelector:
    """Harvest and select; the accuracy of the last snapshot is the module's own."""
    selector = MISelector(num_teachers=1, on_error="raise") if selector is None else selector
    trainer = make_trainer(root, CheckpointHarvester(root / "h"), selector, **{"max_epochs": 2, **options})
    trainer.fit(module, *fit)
    assert selector.selection is not None
    return selector


def distil(root: Path, module: DistillationModule, *fit: Any, **options: Any) -> Any:
    trainer = make_trainer(root, max_epochs=1, **options)
    trainer.fit(module, *fit)
    return trainer


class AnyLoader(Project):
    """Takes a batch of whichever dataloader."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch = batch["a"] if isinstance(batch, dict) else batch
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        batch = batch[0] if isinstance(batch[0], (list, tuple)) else batch
        hits = (self(batch[0]).argmax(1) == batch[1]).float()
        self.log(f"acc_{dataloader_idx}", hits.mean(), batch_size=len(hits), add_dataloader_idx=False)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
@pytest.mark.parametrize("form", ["list", "mapping", "sequential", "combined"])
def test_several_loaders(tmp_path: Path, form: str) -> None:
    loaders = [validation(), validation(1200, 1400)]
    forms: dict[str, Any] = {
        "list": loaders,
        "mapping": dict(zip("ab", loaders, strict=True)),
        "sequential": CombinedLoader(loaders, "sequential"),
        "combined": CombinedLoader(loaders, "max_size_cycle"),
    }
    several: Any = CombinedLoader({"a": training(), "b": training()}, "min_size") if form == "combined" else training()
    selector = way(tmp_path, AnyLoader(), several, forms[form])
    assert selector.selection is not None and selector.selection.probe["size"] == 120  # the first
    logged = json.loads((tmp_path / "h" / "manifest.json").read_text())["snapshots"]
    if form != "combined":  # whose batches come again
        found = [candidate.accuracy for candidate in selector.selection.candidates]
        assert found == pytest.approx([item["metrics"]["acc_0"] for item in logged])
    if form == "combined":
        module = DistillationModule(student(), AnyLoader(), tmp_path / "h")
        with pytest.raises(ArgumentError, match="target_key"):
            distil(tmp_path, module, several, limit_val_batches=0)
        module = DistillationModule(student(), AnyLoader(), tmp_path / "h", input_keys="a.0", target_key="a.1")
        distil(tmp_path, module, several, limit_val_batches=0)
    else:
        trainer = distil(tmp_path, DistillationModule(student(), AnyLoader(), tmp_path / "h"), several, forms[form])
        assert sum("val_acc" in name for name in trainer.callback_metrics) == 2
        predicted = trainer.predict(trainer.lightning_module, forms[form])  # predict_step has a dataloader_idx
        assert [sum(map(len, part)) for part in predicted] == [120, 200]


class WithLoaders(Project):
    def setup(self, stage: str) -> None:
        self.data = DigitsData()

    def train_dataloader(self) -> Any:
        return self.data.train_dataloader()

    def val_dataloader(self) -> Any:
        return [self.data.val_dataloader(), self.data.test_dataloader()]

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx)


class AsksTrainer(WithLoaders):
    def val_dataloader(self) -> Any:
        return DataLoader(digits(1000, 1200), 32 * self.trainer.world_size)


class DataAsksTrainer(DigitsData):
    def val_dataloader(self) -> Any:
        return DataLoader(digits(1000, 1200), 32 * self.trainer.world_size)


def test_loaders_on_the_module(tmp_path: Path) -> None:
    selector = way(tmp_path, WithLoaders())
    assert selector.selection is not None
    proxy = StudentProxy(student(), steps=3, candidates=2)
    alone = MISelector(num_teachers=1, student_proxy=proxy).select(tmp_path / "h", WithLoaders(), progress=False)
    assert [c.accuracy for c in alone.candidates] == [c.accuracy for c in selector.selection.candidates]
    with pytest.raises(ArgumentError, match=r"AsksTrainer.val_dataloader\(\) asks for a Trainer.*as probe="):
        MISelector().select(tmp_path / "h", AsksTrainer(), progress=False)
    with pytest.raises(ArgumentError, match=r"DataAsksTrainer.val_dataloader\(\) asks for a Trainer.*as probe="):
        MISelector().select(tmp_path / "h", Project(), datamodule=DataAsksTrainer(), progress=False)
    MISelector().select(tmp_path / "h", AsksTrainer(), validation(), progress=False)  # the remedy


class Endless(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        while True:
            yield from random.sample(range(100), 100)


@pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling enabled")
def test_endless_and_batch_samplers(tmp_path: Path) -> None:
    data = digits(0, 128)
    by_batch = DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 32, drop_last=True))
    endless = DataLoader(data, 32, sampler=Endless())
    way(tmp_path / "a", Project(), by_batch, by_batch)
    harvester = CheckpointHarvester(tmp_path / "b", every_n_train_steps=4)
    selector = MISelector(num_teachers=2, on_error="raise")
    trainer = make_trainer(tmp_path, harvester, selector, max_epochs=-1, max_steps=8, limit_val_batches=2)
    trainer.fit(Project(), endless, endless)
    assert selector.selection is not None and selector.selection.probe["size"] == 100
    for loader in (by_batch, endless):
        trainer = make_trainer(tmp_path, max_epochs=-1, max_steps=4, limit_val_batches=1)
        trainer.fit(DistillationModule(student(), Project(), tmp_path / "b"), loader, loader)


def test_a_schedule_on_a_plateau(tmp_path: Path) -> None:
    class Plateau(Project):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=10.0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss"}}

    way(tmp_path, Plateau(), DigitsData(), max_epochs=4)
    rates = [item["learning_rate"] for item in json.loads((tmp_path / "h" / "manifest.json").read_text())["snapshots"]]
    assert rates[0] == 0.1 and rates[-1] < 0.1
    distil(tmp_path, DistillationModule(student(), Plateau(), tmp_path / "h"), DigitsData())


class Locked(Project):
    """Holds what can't be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def test_modules_that_cannot_be_copied(tmp_path: Path) -> None:
    way(tmp_path, Locked(), DigitsData())  # nothing is copied for selecting
    with pytest.raises(TeacherError, match=r"teacher=Locked can't be copied: cannot pickle.*or its network alone"):
        distil(tmp_path, DistillationModule(student(), Locked(), tmp_path / "h"), DigitsData())
    distil(tmp_path, DistillationModule(student(), Project(), tmp_path / "h"), DigitsData())

    class Whole(Locked):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Sequential(self.backbone, self.classifier)

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x)

    way(tmp_path / "whole", Whole(), DigitsData())
    part = DistillationModule(student(), Whole().network, tmp_path / "whole" / "h", submodule="network")
    distil(tmp_path, part, DigitsData())
    proxy = StudentProxy(Locked(), steps=2, candidates=2)
    with pytest.raises(ArgumentError, match="student_proxy: Locked can't be copied"):
        way(tmp_path / "proxy", Project(), DigitsData(), selector=MISelector(student_proxy=proxy))
    assert not (tmp_path / "proxy" / "h").exists()


def pruned() -> Project:
    project = Project()
    prune.l1_unstructured(project.classifier, "weight", amount=0.5)
    prune.l1_unstructured(project.backbone[0], "weight", amount=0.3)
    return project


def parametrised() -> Project:
    project = Project()
    parametrizations.weight_norm(project.classifier)
    parametrizations.spectral_norm(project.backbone[3])
    return project


@pytest.mark.parametrize("make", [pruned, parametrised])
def test_pruned_and_parametrised_modules(tmp_path: Path, make: Any) -> None:
    project = make()
    selector = way(tmp_path, project, DigitsData())
    assert selector.selection is not None
    images, labels = digits(1000, 1200).tensors
    with torch.no_grad():
        truth = float((project.eval()(images).argmax(1) == labels).float().mean())
    assert selector.selection.candidates[-1].accuracy == pytest.approx(truth, abs=1e-6)
    alone = MISelector(num_teachers=1).select(tmp_path / "h", make(), validation(1000, 1200), progress=False)
    assert alone.candidates == selector.selection.candidates
    for teacher in (make(), project):
        module = DistillationModule(student(), teacher, tmp_path / "h", choice="full")
        distil(tmp_path, module, DigitsData())
        assert module.teachers is not None
        member = module.teachers.members[0]
        with torch.no_grad():
            torch.testing.assert_close(member(images), project.eval()(images), rtol=1e-4, atol=1e-4)


class Talking(Project):
    """Logs in forward, and asks the Trainer."""

    def forward(self, x: Tensor) -> Tensor:
        self.log("inputs", x.mean(), on_step=False, on_epoch=True)
        return super().forward(x) * (1 if self.trainer.training else 2)


def test_modules_that_log_in_forward(tmp_path: Path) -> None:
    selector = way(tmp_path, Talking(), DigitsData())
    alone = MISelector(num_teachers=1).select(tmp_path / "h", Talking(), DigitsData().val_dataloader(), progress=False)
    assert selector.selection is not None
    assert [c.accuracy for c in alone.candidates] == [c.accuracy for c in selector.selection.candidates]
    proxy = StudentProxy(Talking(), steps=2, candidates=2)
    MISelector(student_proxy=proxy).select(tmp_path / "h", Talking(), validation(), train=training(), progress=False)
    own = Talking()
    distil(tmp_path, DistillationModule(own, Talking(), tmp_path / "h"), DigitsData())
    assert "log" not in vars(own)


class Hooked(Project):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        x, y = batch
        self.seen = [*getattr(self, "seen", []), bool(self.trainer.training)]
        return x * 2 - 1, y


class HookedData(DigitsData):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] * 2 - 1, batch[1]


@pytest.mark.filterwarnings("ignore:Units .* of F are almost always the same")  # one of 16, rectified
@pytest.mark.filterwarnings("ignore:You have overridden.*")
def test_batch_hooks_of_student_and_teacher(tmp_path: Path) -> None:
    way(tmp_path, Hooked(), DigitsData())
    own = Hooked()
    module = DistillationModule(own, Hooked(), tmp_path / "h", choice="full")
    trainer = distil(tmp_path, module, DigitsData())
    assert {True, False} <= set(own.seen)  # in training and in validation
    logged = json.loads((tmp_path / "h" / "manifest.json").read_text())["snapshots"][-1]["metrics"]["val_acc"]
    assert float(trainer.callback_metrics["val_teacher_acc"]) == pytest.approx(logged)
    with pytest.warns(UserWarning, match=r"Hooked changes batches .*\(on_after_batch_transfer\), and the student's"):
        distil(tmp_path, DistillationModule(student(), Hooked(), tmp_path / "h"), DigitsData())
    # the remedies: the DataModule's hooks, and one of a subclass
    trainer = distil(tmp_path, DistillationModule(student(), Hooked(), tmp_path / "h", choice="full"), HookedData())
    assert float(trainer.callback_metrics["val_teacher_acc"]) == pytest.approx(logged)

    class Distilling(DistillationModule):
        on_after_batch_transfer = Hooked.on_after_batch_transfer

    distil(tmp_path, Distilling(student(), Hooked(), tmp_path / "h"), DigitsData())
    plain = nn.Linear(1, 1)
    lend_hooks(plain, student())
    assert not {"on_after_batch_transfer"} & set(vars(plain))


class Other(pytorch_lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = student()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
def test_distilling_under_the_other_name(tmp_path: Path) -> None:
    options = {"default_root_dir": tmp_path, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    selector = MISelector(num_teachers=1, on_error="raise", probe=validation())
    harvester = CheckpointHarvester(tmp_path / "h")
    pytorch_lightning.Trainer(callbacks=[harvester, selector], max_epochs=1, enable_checkpointing=False, **options).fit(
        Other(), training()
    )
    module = DistillationModule(student(), Other(), tmp_path / "h")
    trainer = pytorch_lightning.Trainer(max_epochs=1, enable_checkpointing=False, **options)
    with pytest.raises(ArgumentError, match=r"DistillationModule is a LightningModule of lightning.pytorch.*import Tr"):
        trainer.fit(module, training())
    assert not isinstance(module, pytorch_lightning.LightningModule)  # anybody else may ask
    lightning.pytorch.Trainer(fast_dev_run=True, **options).fit(module, training())  # what it says to import


class Lazy(Project):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.LazyBatchNorm1d(affine=False), nn.Linear(64, 16))


def test_lazy_layers(tmp_path: Path) -> None:
    """They make their weights when a batch runs: in a training by itself, of a new module before it is given."""
    selector = MISelector(on_error="raise", num_teachers=1)
    make_trainer(tmp_path, CheckpointHarvester(dirpath=tmp_path / "h"), selector, max_epochs=2).fit(
        Lazy(), training(), validation()
    )
    assert selector.selection is not None
    unmade = r"=Lazy: 'backbone.1.running_mean' has no shape yet.*Run a batch through the module before you give it"
    made = Lazy()
    made(torch.randn(4, 1, 8, 8))
    with pytest.raises(ArgumentError, match=f"model{unmade}"):
        MISelector(num_teachers=1).select(tmp_path / "h", Lazy(), validation(), progress=False)
    found = MISelector(num_teachers=1).select(tmp_path / "h", made, validation(), progress=False)
    assert found.chosen == selector.selection.chosen
    with pytest.raises(ArgumentError, match=f"teacher{unmade}"):
        DistillationModule(Project(), Lazy(), tmp_path / "h").setup("validate")
    DistillationModule(Project(), made, tmp_path / "h").setup("validate")
    with pytest.raises(ArgumentError, match=f"student_proxy.student{unmade}"):
        StudentProxy(Lazy()).copy_student()


class Causal(Project):
    """Attends to earlier rows of an image only, by a mask of minus infinity that is saved with the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(8, 16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.register_buffer("mask", torch.full((8, 8), -float("inf")).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.embed(x.squeeze(1))
        rows, _ = self.attention(rows, rows, rows, attn_mask=self.mask, need_weights=False)
        return self.classifier(rows.mean(1))


@pytest.mark.parametrize("rule", ["loss", "full"])
def test_masks_of_minus_infinity(tmp_path: Path, rule: str) -> None:
    ensemble = "soup" if rule == "loss" else None
    selector = MISelector(rule=rule, ensemble=ensemble, on_error="raise")
    harvester = CheckpointHarvester(dirpath=tmp_path / "h")
    make_trainer(tmp_path, harvester, selector, max_epochs=2).fit(Causal(), training(), validation())
    assert selector.selection is not None
    assert all(candidate.excluded is None for candidate in selector.selection.candidates)
    student = DistillationModule(Project(), Causal(), tmp_path / "h", acceleration="none")
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(student, training(), validation())
    assert trainer.callback_metrics["train_loss"].isfinite()
