from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lightning.pytorch import seed_everything
from PIL import Image

from tests import shapes

shapes.install()  # before what it checks is imported

from lightning_ckptkd import CheckpointHarvester, SnapshotStore  # noqa: E402
from tests.projects import DigitsData, Project, make_trainer  # noqa: E402

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    seed_everything(0, verbose=False)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)  # demo and benchmarks keep Lightning quiet
    torch.use_deterministic_algorithms(False)  # Trainer(deterministic=True) leaves it on


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the package remembers of this machine is never the user's own, and never another test's."""
    monkeypatch.setenv("LIGHTNING_CKPTKD_CACHE", str(tmp_path_factory.getbasetemp() / f"cache-{next(_numbers)}"))


@pytest.fixture(scope="session", autouse=True)
def _no_user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The same for what is made before any test, such as fixtures of a session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGHTNING_CKPTKD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Project]:
    """A harvest of four epochs of a whole project, and the trained project. Tests that write make a copy."""
    root = tmp_path_factory.mktemp("trained")
    seed_everything(0, verbose=False)
    project = Project()
    make_trainer(root, CheckpointHarvester(dirpath=root / "harvest")).fit(project, DigitsData(train_size=896))
    return root / "harvest", project


@pytest.fixture
def harvest(trained: tuple[Path, Project], tmp_path: Path) -> Path:
    """A copy of the harvest that a test may change."""
    folder = tmp_path / "harvest"
    folder.mkdir()
    for file in trained[0].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def store(harvest: Path) -> SnapshotStore:
    return SnapshotStore.open(harvest)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of real images: patches of the two photographs that scikit-learn ships."""
    from sklearn.datasets import load_sample_image

    root = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for label, name in enumerate(("china.jpg", "flower.jpg")):
        photo = Image.fromarray(load_sample_image(name))
        for split, count in (("train", 80), ("val", 60)):
            folder = root / split / f"class_{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                x, y = (int(torch.randint(size - 48, (1,), generator=generator)) for size in photo.size)
                photo.crop((x, y, x + 48, y + 48)).save(folder / f"{index}.png")
    return root
