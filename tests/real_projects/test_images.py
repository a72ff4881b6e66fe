"""Projects on timm's and torchvision's networks, as their users write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from lightning.pytorch import LightningModule
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torchmetrics.classification import MulticlassAccuracy
from torchvision.models import googlenet
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.fcn import FCN, FCNHead
from torchvision.transforms import v2

from lightning_ckptkd import SnapshotStore, StudentProxy, TeacherCache
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.teachers import CutMix, FeatureMatching, Mixup
from tests.projects import DigitsData, digits
from tests.real_projects.whole_way import Way, accuracy_of

TINY = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 10, "depth": 2, "num_heads": 2}


class SmallData(DigitsData):
    """64 digits to learn from, 100 to look at, in batches of 32."""

    size = 8

    def part(self, start: int, stop: int) -> TensorDataset:
        images, labels = digits(start, stop).tensors
        return TensorDataset(F.interpolate(images, (self.size, self.size)), labels)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.part(0, 128), 32, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.part(1000, 1100), 32)


class Classifier(LightningModule):
    """The usual: a network, cross-entropy, and torchmetrics."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def forward(self, x: Tensor) -> Any:
        return self.network(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.accuracy(self(batch[0]), batch[1])
        self.log("val_acc", self.accuracy)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def labels(network: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    return network(batch[0]).argmax(1), batch[1]


def resnet() -> nn.Module:
    return timm.create_model("test_resnet", in_chans=1, num_classes=10)


def mlp(inputs: int = 64) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, 10))


class LargerData(SmallData):
    size = 32


def test_a_resnet_of_timm(tmp_path: Path) -> None:
    way = Way(lambda: Classifier(resnet()), LargerData, lambda: mlp(1024), accuracy_of(labels))
    harvest = way.harvest(tmp_path, student_proxy=StudentProxy(mlp(1024), steps=4, candidates=2, batch_size=16))
    way.distil(tmp_path, harvest, cache=TeacherCache(tmp_path / "cache"), mix=CutMix())
    dim = int(resnet().num_features)
    matched = FeatureMatching("global_pool", "network.global_pool", dim, dim, spatial=False)
    same = Way(way.module, way.data, resnet, way.measure)
    same.distil(tmp_path, harvest, feature_matching=matched)


class Distilled(Classifier):
    """Two heads while training, whose outputs come as a tuple: that of the class token, that of the other."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        first, second = self(batch[0])
        return F.cross_entropy(first, batch[1]) + F.cross_entropy(second, batch[1])


def two_heads(dim: int = 24) -> nn.Module:
    torch.manual_seed(dim)
    network = VisionTransformerDistilled(**TINY, embed_dim=dim)
    network.set_distilled_training()
    return network


def test_distilled_heads(tmp_path: Path) -> None:
    way = Way(
        lambda: Distilled(two_heads()),
        SmallData,
        lambda: two_heads(16),
        accuracy_of(labels),
        distillation={"student_logits_key": 0},
    )
    harvest = way.harvest(tmp_path)
    way.distil(tmp_path, harvest)
    way.distil(tmp_path, harvest, cache=TeacherCache(tmp_path / "cache"))


def dropped(dim: int = 24) -> nn.Module:
    torch.manual_seed(dim)
    return VisionTransformer(**TINY, embed_dim=dim, drop_path_rate=0.5, pos_drop_rate=0.1)


def test_drop_path(tmp_path: Path) -> None:
    way = Way(lambda: Classifier(dropped()), SmallData, lambda: dropped(16), accuracy_of(labels))
    harvest = way.harvest(tmp_path, student_proxy=StudentProxy(dropped(16), steps=4, candidates=2, batch_size=16))
    way.distil(tmp_path, harvest, mix=Mixup())


class Normalised(Classifier):
    """Normalises in its forward; its student takes the images as they come, and brings what it needs."""

    def forward(self, x: Tensor) -> Any:
        return self.network((x - 0.3) / 0.35)


def test_a_teacher_that_normalises(tmp_path: Path) -> None:
    way = Way(lambda: Normalised(mlp()), SmallData, mlp, accuracy_of(labels))
    harvest = way.harvest(tmp_path)
    module = way.distil(tmp_path, harvest, cache=TeacherCache(tmp_path / "cache"), choice=[1])
    images, _ = digits(0, 16).tensors
    store = SnapshotStore.open(harvest)
    teacher = way.module()
    teacher.load_state_dict(store.load(store.snapshots[-1]))
    assert module.teachers is not None
    found = module.teachers(Batch(images))
    torch.testing.assert_close(found[-1], teacher.eval().network((images - 0.3) / 0.35))


class MixedWhenCollated(SmallData):
    """torchvision's own recipe for mixup: it is part of the training loader's collate function."""

    def train_dataloader(self) -> DataLoader[Any]:
        mixup = v2.MixUp(num_classes=10)
        return DataLoader(self.part(0, 128), 32, shuffle=True, collate_fn=lambda rows: mixup(*default_collate(rows)))


def test_soft_labels_of_a_mixing_collate_function(tmp_path: Path) -> None:
    """The training targets are shares of the classes, those that are looked at are class indices."""
    way = Way(lambda: Classifier(mlp()), MixedWhenCollated, mlp, accuracy_of(labels))
    harvest = way.harvest(tmp_path, student_proxy=StudentProxy(mlp(), steps=4, candidates=2, batch_size=16))
    way.distil(tmp_path, harvest)
    way.distil(tmp_path, harvest, mix=Mixup())


class Inception(Classifier):
    """While training the output is a named tuple with the logits of two auxiliary heads beside the others."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits, second, first = self(batch[0])
        return sum(
            weight * F.cross_entropy(part, batch[1]) for weight, part in ((1, logits), (0.3, second), (0.3, first))
        )


class InceptionData(LargerData):
    def part(self, start: int, stop: int) -> TensorDataset:
        images, truth = super().part(start, stop).tensors
        return TensorDataset(images.expand(-1, 3, -1, -1), truth)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.part(0, 16), 16)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.part(1000, 1050), 50)


def inception() -> nn.Module:
    return googlenet(weights=None, num_classes=10, aux_logits=True, init_weights=False)


def test_an_inception_with_auxiliary_logits(tmp_path: Path) -> None:
    way = Way(lambda: Inception(inception()), InceptionData, inception, accuracy_of(labels))
    way.distil(tmp_path, way.harvest(tmp_path), choice=[1], acceleration="none")


class MaskedData(SmallData):
    """Each pixel is background, ink of an even or of an odd digit; pixels that are neither dark nor bright are 255."""

    def part(self, start: int, stop: int) -> TensorDataset:
        images, truth = digits(start, stop).tensors
        mask = torch.where(images > 0.6, 1 + truth.remainder(2)[:, None, None, None], 0)
        mask[(images > 0.2) & (images <= 0.6)] = 255
        images = F.interpolate(images, (32, 32)).expand(-1, 3, -1, -1)
        return TensorDataset(images, F.interpolate(mask.float(), (32, 32)).long()[:, 0])

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.part(0, 64), 16, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.part(1000, 1064), 16)


class Segmentation(LightningModule):
    """On torchvision's segmentation networks, whose outputs are a mapping."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.accuracy = MulticlassAccuracy(3, average="micro", ignore_index=255)

    def forward(self, x: Tensor) -> Any:
        return self.network(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        found = self(batch[0])
        out, auxiliary = (F.cross_entropy(found[name], batch[1], ignore_index=255) for name in ("out", "aux"))
        return out + 0.5 * auxiliary

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.accuracy(self(batch[0])["out"], batch[1])
        self.log("val_acc", self.accuracy)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def fcn(width: int = 8) -> nn.Module:
    """torchvision's FCN with its auxiliary head, on a small backbone."""
    torch.manual_seed(width)
    stages = [
        nn.Sequential(nn.Conv2d(before, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        for before in (3, width)
    ]
    backbone = IntermediateLayerGetter(nn.Sequential(*stages), {"0": "aux", "1": "out"})
    return FCN(backbone, FCNHead(width, 3), FCNHead(width, 3))


def pixels(network: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    found = network(batch[0])
    found = (found if isinstance(found, Tensor) else found["out"]).argmax(1)
    return found[batch[1] != 255], batch[1][batch[1] != 255]


def small_segmenter() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))


IGNORED = {"ignore_index": 255}
SEGMENTED = Way(
    lambda: Segmentation(fcn()),
    MaskedData,
    small_segmenter,
    accuracy_of(pixels),
    selector=IGNORED,
    distillation=IGNORED,
)


def test_segmentation(tmp_path: Path) -> None:
    proxy = StudentProxy(small_segmenter(), steps=4, candidates=2, batch_size=16)
    harvest = SEGMENTED.harvest(tmp_path, student_proxy=proxy)
    SEGMENTED.distil(tmp_path, harvest, cache=TeacherCache(tmp_path / "cache"))
    SEGMENTED.distil(tmp_path, harvest, mix=Mixup())
    same = Way(SEGMENTED.module, SEGMENTED.data, lambda: fcn(4), SEGMENTED.measure, distillation=IGNORED)
    same.distil(tmp_path, harvest, feature_matching=FeatureMatching("backbone.1", "network.backbone.1", 4, 8))
