"""Metrics beside the manifest: what is written is never larger than what is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_ckptkd import SnapshotError, SnapshotStore
from lightning_ckptkd.snapshots.folders import base
from lightning_ckptkd.snapshots.metrics_file import FiledMetrics, find_large
from tests.reliability.harvests import scratch_folder

MANY = {f"validation/class_{number}/accuracy": number / 7 for number in range(500)} | {"nan": None}


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder that need not wait for a disk."""
    with scratch_folder() as folder:
        yield Path(folder) / "h"


def commit(store: SnapshotStore, step: int, metrics: Any = None) -> None:
    store.commit({"a": torch.tensor([float(step)])}, epoch=step, global_step=step, metrics=metrics)


def manifest_of(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return document


def test_691_snapshots_with_500_metrics_each(memory: Path) -> None:
    """A manifest that held them all would be larger than what is read of one."""
    count = 691
    with SnapshotStore.create(memory, "run", {}) as store:
        for step in range(count):
            commit(store, step, {**MANY, "step": step})
    store = SnapshotStore.open(memory)
    assert len(store.snapshots) == count
    assert (memory / "manifest.json").stat().st_size < 2**20
    for step in (0, 345, count - 1):
        assert store.snapshots[step].metrics == {**MANY, "step": step}
        assert store.load(store.snapshots[step])["a"] == step
    inline = json.dumps({**MANY, "step": 0}, indent=1)
    assert count * len(inline) > base._MAX_JSON_BYTES, "else this shows nothing"
    with SnapshotStore.create(memory, "run", {}) as store:
        commit(store, count, MANY)
    assert len(SnapshotStore.open(memory).snapshots) == count + 1


def test_few_metrics_stay_in_the_manifest(tmp_path: Path) -> None:
    with SnapshotStore.create(tmp_path, "run", {}) as store:
        commit(store, 1, {"loss": 0.5})
        commit(store, 2, MANY)
    few, many = manifest_of(tmp_path)["snapshots"]
    assert few["metrics"] == {"loss": 0.5}
    assert "metrics" not in many
    assert (tmp_path / many["metrics_file"]["file"]).stat().st_size == many["metrics_file"]["size"]
    assert [dict(found.metrics) for found in SnapshotStore.open(tmp_path).snapshots] == [{"loss": 0.5}, MANY]


def test_many_small_metrics_go_beside_before_the_manifest_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_ckptkd.snapshots.metrics_file._MAX_INLINE_TOTAL", 100)
    assert find_large([{"loss": 0.5}] * 10) == {7, 8, 9}


def test_metrics_that_come_later_take_the_place_of_the_file(tmp_path: Path) -> None:
    with SnapshotStore.create(tmp_path, "run", {}) as store:
        commit(store, 1, MANY)
        store.set_metrics(1, {"loss": 0.5, "nan": 2.0})
        store.set_metrics(1, {"loss": 0.25})
    (snapshot,) = SnapshotStore.open(tmp_path).snapshots
    assert snapshot.metrics == {**MANY, "loss": 0.25, "nan": 2.0}
    assert isinstance(snapshot.metrics, FiledMetrics)
    files = {"manifest.json", ".lock", snapshot.file, snapshot.metrics.file}
    assert {path.name for path in tmp_path.iterdir()} == files


def test_a_snapshot_goes_with_its_metrics(tmp_path: Path) -> None:
    with SnapshotStore.create(tmp_path, "run", {}) as store:
        for step in (1, 2):
            commit(store, step, MANY)
        store.forget_after(1)
    assert len(list(tmp_path.glob("*.metrics.json"))) == 1
    SnapshotStore.open(tmp_path).snapshots[0].metrics["nan"]


def test_what_a_killed_writer_left_is_cleaned(tmp_path: Path) -> None:
    with SnapshotStore.create(tmp_path, "run", {}) as store:
        commit(store, 1, MANY)
        tag = store.manifest.tag
    left = [f"epoch=9-step=9-{tag}-00000000.metrics.json", f"epoch=9-step=9-{tag}-00000000.safetensors"]
    other = "epoch=9-step=9-00000000-00000000.metrics.json"
    for name in (*left, other):
        (tmp_path / name).write_text("")
    SnapshotStore.create(tmp_path, "run", {}).close()
    assert not any((tmp_path / name).exists() for name in left)
    assert (tmp_path / other).exists()
    assert SnapshotStore.open(tmp_path).snapshots[0].metrics == MANY


def test_a_manifest_of_before_is_read_and_continued(tmp_path: Path) -> None:
    """One that holds many metrics itself, as they were written."""
    with SnapshotStore.create(tmp_path, "run", {}) as store:
        commit(store, 1)
    document = manifest_of(tmp_path)
    document["snapshots"][0]["metrics"] = MANY
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    assert SnapshotStore.open(tmp_path).snapshots[0].metrics == MANY
    with SnapshotStore.create(tmp_path, "run", {}) as store:
        commit(store, 2)
    assert "metrics_file" in manifest_of(tmp_path)["snapshots"][0]
    assert [dict(found.metrics) for found in SnapshotStore.open(tmp_path).snapshots] == [MANY, {}]


def test_a_manifest_that_would_not_be_read_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SnapshotStore.create(tmp_path, "run", {}) as store:
        commit(store, 1)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        monkeypatch.setattr(base, "_MAX_JSON_BYTES", len(before["manifest.json"]) + 10)
        with pytest.raises(
            SnapshotError, match=r"manifest\.json would have \d+ bytes, more than the \d+ that are read"
        ):
            commit(store, 2)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert len(SnapshotStore.open(tmp_path).snapshots) == 1


@pytest.mark.parametrize("damage", ["missing", "changed", "cut", "link"])
def test_damaged_metrics_leave_the_weights_alone(tmp_path: Path, damage: str) -> None:
    with SnapshotStore.create(tmp_path / "h", "run", {}) as store:
        commit(store, 1, MANY)
    (path,) = (tmp_path / "h").glob("*.metrics.json")
    data = path.read_bytes()
    path.unlink()
    if damage == "changed":
        path.write_bytes(data.replace(b"class_0", b"class_9"))
    if damage == "cut":
        path.write_bytes(data[:-1])
    if damage == "link":
        (tmp_path / "elsewhere").write_bytes(data)
        path.symlink_to(tmp_path / "elsewhere")
    store = SnapshotStore.open(tmp_path / "h")
    assert store.load(store.snapshots[0])["a"] == 1
    with pytest.raises(
        SnapshotError, match=rf"{path.name} (is missing|does not have the SHA-256|has \d+ bytes|can't be)"
    ):
        dict(store.snapshots[0].metrics)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": "../x.metrics.json"}, "only plain names"),
        ({"file": "/etc/passwd"}, "only plain names"),
        ({"file": "manifest.json"}, "only plain names"),
        ({"file": "epoch=2-step=2.safetensors"}, "only plain names"),
        ({"file": 3}, "'file' should be a string"),
        ({"sha256": "00"}, "is not 64 hexadecimal digits"),
        ({"size": -1}, "'size' should be an integer"),
        ([], "'metrics_file' should be an object"),
    ],
)
def test_wrong_fields(tmp_path: Path, changes: Any, message: str) -> None:
    with SnapshotStore.create(tmp_path, "run", {}) as store:
        commit(store, 1, MANY)
    document = manifest_of(tmp_path)
    filed = document["snapshots"][0]["metrics_file"]
    document["snapshots"][0]["metrics_file"] = {**filed, **changes} if isinstance(changes, dict) else changes
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(SnapshotError, match=message):
        SnapshotStore.open(tmp_path)


@pytest.mark.parametrize(
    "content", [b"[]", b"{", b'{"format": "lightning_ckptkd.metrics", "version": 1, "metrics": 3}']
)
def test_a_file_with_the_right_hash_that_holds_no_metrics(tmp_path: Path, content: bytes) -> None:
    import hashlib

    with SnapshotStore.create(tmp_path, "run", {}) as store:
        commit(store, 1, MANY)
    document = manifest_of(tmp_path)
    filed = document["snapshots"][0]["metrics_file"]
    (tmp_path / filed["file"]).write_bytes(content)
    filed.update(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    (snapshot,) = SnapshotStore.open(tmp_path).snapshots
    with pytest.raises(SnapshotError, match=r"should be|is not valid JSON"):
        dict(snapshot.metrics)


def test_one_file_for_two_snapshots_is_refused(tmp_path: Path) -> None:
    with SnapshotStore.create(tmp_path, "run", {}) as store:
        for step in (1, 2):
            commit(store, step, MANY)
    document = manifest_of(tmp_path)
    document["snapshots"][0]["metrics_file"] = document["snapshots"][1]["metrics_file"]
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(SnapshotError, match="names the same file twice"):
        SnapshotStore.open(tmp_path)


def test_hyper_parameters_of_any_size_leave_room(tmp_path: Path) -> None:
    from lightning_ckptkd.snapshots.fields import json_safe

    huge = json_safe({str(number): "x" * 90_000 for number in range(1000)})
    with SnapshotStore.create(tmp_path, "run", {"hyper_parameters": huge}) as store:
        commit(store, 1)
    assert (tmp_path / "manifest.json").stat().st_size < 2**21
