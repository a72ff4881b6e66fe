"""A timm network whose module normalises uint8 pixels in a batch hook, and students that normalise otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_ckptkd import DistillationModule, SnapshotStore, TeacherCache
from lightning_ckptkd.tasks.batch import Batch
from tests.real_projects.test_images import Classifier, LargerData, labels
from tests.real_projects.whole_way import Way, accuracy_of

MEAN, STD = (torch.tensor(value).view(3, 1, 1) for value in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))


def normalised(pixels: Tensor) -> Tensor:
    """As timm's networks were trained."""
    return (pixels.float() / 255 - MEAN) / STD


class Pixels(LargerData):
    """Colour images of digits as files have them: uint8; in one order, so that two students can be compared."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.part(0, 128), 32)

    def part(self, start: int, stop: int) -> TensorDataset:
        images, truth = super().part(start, stop).tensors
        tint = torch.tensor([1.0, 0.6, 0.3]).view(3, 1, 1)
        return TensorDataset((images * tint * 255).byte(), truth)


class OnTheWay(Classifier):
    """The trained module: its network gets what its hook makes of the pixels."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(timm.create_model("test_resnet", num_classes=10))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return normalised(batch[0]), batch[1]


class SharedHook(DistillationModule):
    """The hook as the warning advises: teachers and student get what the teachers were trained on."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return normalised(batch[0]), batch[1]


class InForward(nn.Module):
    """The teachers' skeleton where the batch stays as it is: names of weights as the module has them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = timm.create_model("test_resnet", num_classes=10)

    def forward(self, pixels: Tensor) -> Any:
        return self.network(normalised(pixels))


class Student(nn.Module):
    """Wants numbers from -1 to 1.

    Args:
        undo: Whether it gets the teachers' numbers, and not the pixels.
    """

    def __init__(self, undo: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.undo = undo
        self.layers = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        shares = x * STD + MEAN if self.undo else x.float() / 255
        found: Tensor = self.layers(2 * shares - 1)
        return found


def predict(network: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    return network(normalised(batch[0])).argmax(1), batch[1]


HOOKED = Way(OnTheWay, Pixels, lambda: Student(undo=True), accuracy_of(predict), epochs=4, distiller=SharedHook)
PLAIN = Way(InForward, Pixels, lambda: Student(undo=False), accuracy_of(labels))


# Lightning's word on a hook that it does run
@pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer`:UserWarning")
def test_teachers_see_what_they_were_trained_on(tmp_path: Path) -> None:
    harvest = HOOKED.harvest(tmp_path)  # the accuracies are those that the module logged
    store = SnapshotStore.open(harvest)
    trained = OnTheWay().eval()
    trained.load_state_dict(store.load(store.snapshots[-1]))
    pixels, _ = Pixels().part(0, 16).tensors
    own = trained(normalised(pixels)).detach()

    hooked = HOOKED.distil(tmp_path, harvest, choice=[3])
    plain = PLAIN.distil(tmp_path, harvest, choice=[3], cache=TeacherCache(tmp_path / "cache", dtype="fp32"))
    assert hooked.teachers is not None and plain.teachers is not None
    batch, _ = hooked.on_after_batch_transfer((pixels, None), 0)
    torch.testing.assert_close(hooked.teachers(Batch(batch))[0], own)
    torch.testing.assert_close(plain.teachers(Batch(pixels))[0], own)
    ways = [module.student(inputs) for module, inputs in ((hooked, batch), (plain, pixels))]
    torch.testing.assert_close(*ways, rtol=1e-4, atol=1e-4)  # the same student, whoever normalises

    recorded = json.loads((harvest / "selection.json").read_text())["snapshots"][-1]["accuracy"]
    as_it_comes = accuracy_of(lambda network, batch: (network(batch[0].float()).argmax(1), batch[1]))
    assert as_it_comes(trained, Pixels()) != pytest.approx(recorded), "normalising is what makes them equal"

    with (
        pytest.warns(UserWarning, match=r"OnTheWay changes batches .* or of a subclass of DistillationModule"),
        pytest.raises(RuntimeError, match="Byte"),
    ):
        Way(OnTheWay, Pixels, PLAIN.student, PLAIN.measure).distil(tmp_path, harvest, choice=[3])
