from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torchvision.transforms import v2

from lightning_ckptkd import ArgumentError
from lightning_ckptkd.zoo import (
    CIFAR100DataModule,
    DigitsDataModule,
    FashionMNISTDataModule,
    ImageFolderDataModule,
)
from lightning_ckptkd.zoo.images import ImageDataModule
from lightning_ckptkd.zoo.wrong_labels import Relabelled, WrongLabels
from tests.projects import write_fashion_mnist


def ready(data: ImageDataModule) -> ImageDataModule:
    data.prepare_data()
    data.setup("fit")
    return data


def sizes(data: ImageDataModule) -> dict[str, int]:
    return {split: len(images) for split, images in data.sets.items()}


def test_digits_are_cut_once_for_a_seed() -> None:
    data, again, other = (ready(DigitsDataModule(seed=seed)) for seed in (0, 0, 1))
    assert sizes(data) == {"test": 797, "val": 400, "train": 600}
    parts = [set(data.sets[split].indices) for split in ("train", "val", "test")]
    assert len(set.union(*parts)) == 1797
    assert data.sets["val"].indices == again.sets["val"].indices != other.sets["val"].indices
    assert sizes(ready(DigitsDataModule(train_size=50)))["train"] == 50
    x, y = next(iter(data.train_dataloader()))
    assert x.shape == (64, 1, 8, 8)
    assert 0 <= float(x.min()) <= float(x.max()) <= 1
    assert y.dtype == torch.int64


def test_more_validation_than_there_is() -> None:
    with pytest.raises(ArgumentError, match=r"val_size should be between 1 and 999, .* got 1000"):
        ready(DigitsDataModule(val_size=1000))


def test_a_folder_of_class_folders(image_folder: Path) -> None:
    data = ready(ImageFolderDataModule(image_folder, image_size=32, batch_size=8, num_workers=0))
    assert sizes(data) == {"test": 120, "val": 120, "train": 160}
    x, y = next(iter(data.train_dataloader()))
    assert x.shape == (8, 3, 32, 32)
    assert set(y.tolist()) <= {0, 1}
    first, again = (data.sets["val"][0][0] for _ in range(2))
    assert torch.equal(first, again), "validation images are not augmented"
    augmented = [data.sets["train"][0][0] for _ in range(8)]
    assert any(not torch.equal(augmented[0], image) for image in augmented[1:])


def test_transforms_are_options(image_folder: Path) -> None:
    plain = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.CenterCrop(20)]
    data = ready(ImageFolderDataModule(image_folder, num_workers=0, train_transforms=plain, eval_transforms=plain))
    for split in ("train", "val"):
        image = data.sets[split][0][0]
        assert image.shape == (3, 20, 20)
        assert 0 <= float(image.min()) <= float(image.max()) <= 1


def test_large_images_get_imagenets_transforms(image_folder: Path) -> None:
    data = ready(ImageFolderDataModule(image_folder, image_size=96, batch_size=2, num_workers=0))
    assert next(iter(data.val_dataloader()))[0].shape == (2, 3, 96, 96)
    assert any(isinstance(step, v2.RandomResizedCrop) for step in data.usual_transforms(train=True))


def test_tiny_imagenets_annotated_validation_images(image_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(image_folder / "train", tmp_path / "train")
    flat = tmp_path / "val" / "images"
    flat.mkdir(parents=True)
    rows = []
    for label in ("class_1", "class_0"):
        source = image_folder / "val" / label / "0.png"
        shutil.copy(source, flat / f"{label}.png")
        rows.append(f"{label}.png\t{label}\t0\t0\t63\t63")
    (tmp_path / "val" / "val_annotations.txt").write_text("\n".join(rows))
    data = ready(ImageFolderDataModule(tmp_path, image_size=32, num_workers=0))
    assert [label for _, label in data.sets["val"]] == [1, 0]


def test_a_validation_folder_that_lacks_a_class(image_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(image_folder, tmp_path / "images")
    shutil.rmtree(tmp_path / "images" / "val" / "class_0")
    data = ready(ImageFolderDataModule(tmp_path / "images", image_size=32, num_workers=0))
    assert {label for _, label in data.sets["val"].samples} == {1}


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="has no folder 'train'"):
        ready(ImageFolderDataModule(tmp_path))


def test_cifar100_as_a_folder(image_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(image_folder / "train", tmp_path / "train")
    data = ready(CIFAR100DataModule(tmp_path, batch_size=4, num_workers=0, val_size=20, test_size=30, train_size=50))
    assert sizes(data) == {"test": 30, "val": 20, "train": 50}
    assert not set(data.sets["val"].indices) & set(data.sets["test"].indices)
    assert next(iter(data.train_dataloader()))[0].shape == (4, 3, 32, 32)


def test_cifar100_folders_have_the_classes_of_train(image_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(image_folder / "train", tmp_path / "train")
    shutil.copytree(image_folder / "val" / "class_1", tmp_path / "test" / "class_1")
    data = ready(CIFAR100DataModule(tmp_path, num_workers=0, val_size=20))
    assert {label for _, label in data.sets["test"].samples} == {1}


def test_fashion_mnist_that_is_there_already(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    data = ready(FashionMNISTDataModule(tmp_path, batch_size=4, num_workers=0, val_size=60, augment=True))
    assert sizes(data) == {"test": 100, "val": 60, "train": 140}
    x, _ = next(iter(data.predict_dataloader()))
    assert x.shape == (4, 1, 28, 28)


def test_wrong_labels() -> None:
    clean, noisy, again = (ready(DigitsDataModule(seed=3, wrong_labels=share)) for share in (0.0, 0.4, 0.4))
    for split, least, most in (("train", 0.33, 0.47), ("val", 0.33, 0.47), ("test", 0.0, 0.0)):
        pairs = [[data.sets[split][index] for index in range(len(data.sets[split]))] for data in (clean, noisy, again)]
        assert all(torch.equal(a[0], b[0]) for a, b in zip(*pairs[:2], strict=True))
        wrong = [int(a[1]) != int(b[1]) for a, b in zip(*pairs[:2], strict=True)]
        assert least <= sum(wrong) / len(wrong) <= most
        assert [int(y) for _, y in pairs[1]] == [int(y) for _, y in pairs[2]]
        assert all(0 <= int(y) < 10 for _, y in pairs[1])
    every = WrongLabels(clean.sets["val"], 1.0, 10, seed=0)
    assert all(int(every[index][1]) != int(clean.sets["val"][index][1]) for index in range(len(every)))
    assert len({every.shifts.count(shift) > 20 for shift in range(1, 10)}) == 1


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_of_wrong_labels_that_is_none(share: float) -> None:
    with pytest.raises(ArgumentError, match=r"wrong_labels should be a share in \[0, 1\], such as 0.4, got"):
        DigitsDataModule(wrong_labels=share)


def test_labels_that_do_not_match_the_images() -> None:
    images = ready(DigitsDataModule()).sets["val"]
    with pytest.raises(ArgumentError, match="there are 3 for 400 samples"):
        Relabelled(images, [1, 2, 3])
    assert Relabelled(images, [7] * 400)[5][1] == 7
