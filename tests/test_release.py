"""What would be released: built from the repository's files, installed by itself, and run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

if sys.version_info >= (3, 11):
    from tomllib import loads as toml_loads
else:
    from setuptools.compat.py310 import tomllib

    toml_loads = tomllib.loads

REPOSITORY = Path(__file__).parents[1]
PACKAGE = "lightning_ckptkd"
BUILT = ("pyproject.toml", "README.md", "LICENSE", PACKAGE)
RUN = """
import sys
from importlib.metadata import entry_points, version
import lightning_ckptkd
from lightning_ckptkd.commands import run
(script,) = entry_points(group="console_scripts", name="ckptkd")
assert script.load() is run.run
print(lightning_ckptkd.__file__, version("lightning-ckptkd"), lightning_ckptkd.__version__)
sys.argv = ["ckptkd", "export", "no.ckpt", "s.pt"]
script.load()()
"""


def call(*words: str | Path, cwd: Path) -> None:
    done = subprocess.run(list(words), cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def project() -> dict[str, Any]:
    found: dict[str, Any] = toml_loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return found


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sdist, and the wheel that is made of the sdist; without the network."""
    root = tmp_path_factory.mktemp("release")
    source, made = root / "source", root / "dist"
    source.mkdir()
    for name in BUILT:
        path = REPOSITORY / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    call(sys.executable, "-c", f"from setuptools.build_meta import build_sdist; build_sdist({str(made)!r})", cwd=source)
    (sdist,) = made.glob("*.tar.gz")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    call(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", made, sdist, cwd=root)
    return made


def test_all_files_are_in(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    files = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / PACKAGE).rglob("*")}
    wanted = {file for file in files if file.endswith((".py", ".yaml", ".json", "py.typed"))}
    with zipfile.ZipFile(wheel) as archive:
        listed = archive.namelist()
    assert {name for name in listed if name.startswith(f"{PACKAGE}/")} == wanted
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert wanted | {"LICENSE", "README.md", "pyproject.toml"} <= names


def test_it_runs_by_itself(dist: Path, tmp_path: Path) -> None:
    """Installed into a folder of its own, with nothing of the repository on the path."""
    (wheel,) = dist.glob("*.whl")
    where = tmp_path / "installed"
    options = ["--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check", "--quiet"]
    call(sys.executable, "-m", "pip", "install", *options, "--target", where, wheel, cwd=tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=tmp_path,
        env={"PYTHONPATH": str(where)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    version = project()["version"]
    assert done.stdout.split() == [str(where / PACKAGE / "__init__.py"), version, version], done.stderr
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith("ckptkd: error: checkpoint no.ckpt can't be opened: No such file")
    )


def test_twine_check(dist: Path) -> None:
    from twine.commands.check import check

    assert not check([str(path) for path in dist.iterdir()], strict=True)


def test_the_version_is_said_alike() -> None:
    found = project()
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == found["version"] and citation["license"] == found["license"]
    latest = re.search(r"^## (\S+)", (REPOSITORY / "CHANGELOG.md").read_text(), re.M)
    assert latest is not None and latest[1] == found["version"]


def test_the_workflows() -> None:
    """Each Python that is promised is tested, and what is run is there."""
    found = project()
    promised = re.findall(r":: (3\.\d+)$", "\n".join(found["classifiers"]), re.M)
    workflows = {
        path.stem: yaml.safe_load(path.read_text()) for path in (REPOSITORY / ".github" / "workflows").glob("*.yml")
    }
    assert workflows.keys() == {"tests", "release"}
    assert workflows["tests"]["jobs"]["test"]["strategy"]["matrix"]["python"] == promised
    targets = re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), re.M)
    runs = [step["run"] for job in workflows["tests"]["jobs"].values() for step in job["steps"] if "run" in step]
    assert {run.split()[1] for run in runs} == {"test", "docs"} <= set(targets)
    assert workflows["release"]["jobs"]["publish"]["permissions"] == {"id-token": "write"}
