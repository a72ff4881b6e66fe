"""Harvests on a real S3 server, through s3fs."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_ckptkd import CheckpointHarvester, DistillationModule, MISelector, SnapshotError, SnapshotStore
from lightning_ckptkd.commands.export import export_student
from lightning_ckptkd.snapshots import Selection, commit_soup
from lightning_ckptkd.snapshots.folders import open_folder
from lightning_ckptkd.snapshots.folders.objects import Objects
from lightning_ckptkd.snapshots.folders.remote import RemoteFolder
from tests.projects import DigitsData, Project, make_trainer
from tests.reliability.harvests import commit
from tests.reliability.s3_server import BUCKET, S3Server, s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def url(server: S3Server, request: pytest.FixtureRequest) -> str:
    return f"s3://{BUCKET}/{abs(hash(request.node.name))}/snapshots"


def another_client() -> Any:
    """What another process has: nothing that the package's own client has seen."""
    return fsspec.filesystem("s3", skip_instance_cache=True)


def names_in(url: str) -> set[str]:
    return {path.rsplit("/", 1)[-1] for path in another_client().ls(url.removeprefix("s3://"), detail=False)}


def test_the_usual_way(url: str, tmp_path: Path) -> None:
    """Harvest, selection, distillation, export, each through the URL alone, without a warning."""
    make_trainer(tmp_path, CheckpointHarvester(url), MISelector(num_teachers=2)).fit(Project(), DigitsData())
    store = SnapshotStore.open(url)
    assert [snapshot.epoch for snapshot in store.snapshots] == [0, 1, 2, 3]
    first = Selection.read(store)
    assert len(first.chosen) == 2
    assert "scores.json" in names_in(url)
    module = DistillationModule(
        Project(channels=2), Project(), url, optimizer=lambda weights: torch.optim.SGD(weights, lr=0.1)
    )
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, DigitsData())
    trainer.save_checkpoint(tmp_path / "student.ckpt")
    out = url.removesuffix("snapshots") + "student.safetensors"
    weights = export_student(tmp_path / "student.ckpt", out)
    assert another_client().size(out.removeprefix("s3://")) > sum(value.nbytes for value in weights.values())


def test_a_killed_run_leaves_its_lock_to_the_same_run(url: str) -> None:
    left = {"run_id": "killed", "token": "0123", "process": 7, "host": "node-1", "since": "2026-11-27T20:00:00+00:00"}
    Objects(url).put("lock.json", json.dumps(left).encode())
    with pytest.raises(
        SnapshotError,
        match=rf"being written by the run 'killed' \(process 7 on 'node-1', '2026-.*\); .*remove {url}/lock\.json\.$",
    ):
        SnapshotStore.create(url, "other", {})
    with SnapshotStore.create(url, "killed", {}) as store:
        assert json.loads(Objects(url).get("lock.json"))["token"] != "0123"
        commit(store, 0)
    assert not Objects(url).exists("lock.json")


def test_a_soup_does_not_take_a_trainings_lock(url: str) -> None:
    with SnapshotStore.create(url, "run", {}) as store:
        commit(store, 0)
        commit(store, 1)
        other = json.loads(Objects(url).get("lock.json"))
        with pytest.raises(SnapshotError, match="is being written by the run 'run'"):
            commit_soup(url, store.load(store.snapshots[0]), store.snapshots, {})
        assert json.loads(Objects(url).get("lock.json")) == other
        commit(store, 2)
    soup = commit_soup(url, store.load(store.snapshots[0]), store.snapshots, {})
    again = SnapshotStore.open(url)
    assert again.soups == (soup,)
    assert len(again.snapshots) == 3
    again.verify(soup)
    assert not Objects(url).exists("lock.json")


def test_what_the_refusal_advises(url: str) -> None:
    Objects(url).put("lock.json", b'{"run_id": "dead"}')
    with pytest.raises(SnapshotError, match=r"if that run is dead, remove s3://.*/lock\.json"):
        SnapshotStore.create(url, "other", {})
    another_client().rm_file(f"{url}/lock.json".removeprefix("s3://"))
    SnapshotStore.create(url, "other", {}).close()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"run_id": {}}', b"[" * 5000, b"null"])
def test_a_lock_that_can_not_be_read_keeps_others_out(url: str, content: bytes) -> None:
    Objects(url).put("lock.json", content)
    with pytest.raises(SnapshotError, match=r"is being written by the run .*remove s3://"):
        SnapshotStore.create(url, "run", {})
    assert Objects(url).get("lock.json") == content


def test_of_two_that_start_at_the_same_moment_one_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other's lock comes between any two requests of this one, down to the very put."""
    real = Objects._call
    lock = b'{"run_id": "first", "token": "0123"}'
    refused = 0
    for turn in range(20):
        at, requests, place = turn, iter(range(100)), f"{url}/{turn}"
        first = Objects(place)

        def intrude(
            self: Objects, *arguments: Any, at: int = at, n: Any = requests, by: Any = first, **options: Any
        ) -> Any:
            if next(n) == at:
                with contextlib.suppress(FileExistsError):
                    real(by, "pipe_file", by._path("lock.json"), lock, mode="create")
            return real(self, *arguments, **options)

        monkeypatch.setattr(Objects, "_call", intrude)
        try:
            with SnapshotStore.create(place, "second", {}):
                monkeypatch.undo()
                assert json.loads(first.get("lock.json"))["run_id"] == "second"
        except SnapshotError as error:
            monkeypatch.undo()
            assert "is being written by the run 'first'" in str(error)
            assert first.get("lock.json") == lock
            refused += 1
        monkeypatch.undo()
    assert 2 <= refused < 20, "before it has the lock, and not once it has it"


def test_two_writers_in_one_process(url: str) -> None:
    with SnapshotStore.create(url, "run", {}):
        with pytest.raises(SnapshotError, match="another CheckpointHarvester or Trainer of this process"):
            SnapshotStore.create(url, "run", {})
        with pytest.raises(SnapshotError, match="is being written by the run 'run'"):
            SnapshotStore.create(url, "other", {})


@pytest.mark.parametrize("lock", [b'{"run_id": "run", "token": "of the process that went on"}', None])
def test_a_process_whose_lock_was_taken_changes_nothing(url: str, lock: bytes | None) -> None:
    """Two processes of one run: the one that came last has the harvest, the other finds out before it writes."""
    objects = Objects(url)
    with SnapshotStore.create(url, "run", {}) as store:
        commit(store, 0)
        if lock is None:
            objects.remove("lock.json")
        else:
            objects.put("lock.json", lock)
        before = {name: objects.get(name) for name in names_in(url)}
        with pytest.raises(SnapshotError, match=r"no longer written by this process: its lock lock\.json is "):
            commit(store, 1)
        with pytest.raises(SnapshotError, match="Nothing was written"):
            store.set_metrics(10, {"loss": 0.5})
        assert {name: objects.get(name) for name in names_in(url)} == before
    assert objects.exists("lock.json") == (lock is not None), "nobody gives back another's lock"


def test_another_run_that_got_in_is_never_overwritten_or_adopted(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with SnapshotStore.create(url + "-other", "other", {}) as other:
        commit(other, 5)
    others = Objects(url + "-other").get("manifest.json")
    objects = Objects(url)
    with SnapshotStore.create(url, "run", {}) as store:
        commit(store, 0)
        mine = store.manifest
        real = Objects.put

        def intrude(self: Objects, name: str, data: bytes) -> None:
            if name == "manifest.json":
                real(self, name, others)
                raise ConnectionError("reset by peer")
            real(self, name, data)

        monkeypatch.setattr(Objects, "put", intrude)
        with pytest.raises(SnapshotError, match="reset by peer"):
            commit(store, 1)
        monkeypatch.undo()
        assert store.manifest == mine
        for _ in range(2):
            with pytest.raises(SnapshotError, match=r"already holds 1 snapshots of another run \('other'\)"):
                commit(store, 2)
        assert objects.get("manifest.json") == others
        assert store.manifest == mine


def test_a_put_whose_answer_was_lost(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made again by the client, and then refused because of itself."""
    real = Objects.create

    def twice(self: Objects, name: str, data: bytes) -> bool:
        real(self, name, data)
        return real(self, name, data)

    monkeypatch.setattr(Objects, "create", twice)
    with SnapshotStore.create(url, "run", {}) as store:
        commit(store, 0)

    def lose(self: Objects, name: str, data: bytes) -> bool:
        real(self, name, data)
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(Objects, "create", lose)
    with SnapshotStore.create(url, "run", {}) as store:
        commit(store, 1)


def test_a_store_that_minds_no_conditions_is_said_once_before_training(server: S3Server, url: str) -> None:
    server.ignore_conditions(True)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with SnapshotStore.create(url, "run", {}) as store:
                commit(store, 0)
    finally:
        server.ignore_conditions(False)
    (warning,) = said
    assert f"{url}: its store has no conditional put" in str(warning.message)
    with pytest.warns(UserWarning, match=r"memory://nothing/put: its store has no conditional put"):
        SnapshotStore.create("memory://nothing/put", "run", {}).close()


def test_a_reader_between_any_two_versions(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is written between two requests of a reader, what it reads is one whole version."""
    with SnapshotStore.create(url, "run", {}) as store:
        commit(store, 0)
        short = Objects(url).get("manifest.json")
        store.set_metrics(10, {f"metric_{i}": i / 7 for i in range(200)})
        long = Objects(url).get("manifest.json")
    writer = Objects(url)
    real = Objects._call
    found = set()
    for versions in ((short, long), (long, short)):
        for turn in range(4):
            requests = iter(range(100))

            def intrude(
                self: Objects,
                *arguments: Any,
                versions: Any = versions,
                at: int = turn,
                n: Any = requests,
                **options: Any,
            ) -> Any:
                real(writer, "pipe_file", writer._path("manifest.json"), versions[next(n) >= at])
                return real(self, *arguments, **options)

            monkeypatch.setattr(Objects, "_call", intrude)
            found.add(len(SnapshotStore.open(url).snapshots[0].metrics))
            monkeypatch.undo()
    assert found == {0, 200}


def test_damaged_objects(url: str) -> None:
    with SnapshotStore.create(url, "run", {}) as store:
        snapshots = [commit(store, epoch) for epoch in range(4)]
    objects = Objects(url)
    data = bytearray(objects.get(snapshots[0].file))
    data[-1] ^= 1
    objects.put(snapshots[0].file, bytes(data))
    objects.put(snapshots[1].file, b"")
    objects.put(snapshots[2].file, objects.get(snapshots[2].file) + b"12345")
    objects.remove(snapshots[3].file)
    for snapshot, reason in zip(
        snapshots,
        (
            "does not have the SHA-256",
            f"has 0 bytes where the manifest says {snapshots[1].size}",
            f"has {snapshots[2].size + 5} bytes where the manifest says {snapshots[2].size}",
            "is missing",
        ),
        strict=True,
    ):
        with pytest.raises(SnapshotError, match=reason):
            store.load(snapshot)
    objects.put("manifest.json", b" " * (17 * 2**20))
    with pytest.raises(SnapshotError, match="has 17825792 bytes, more than the 16777216 that are read"):
        SnapshotStore.open(url)


def test_listings_of_the_past_are_not_believed(url: str) -> None:
    """s3fs remembers what it listed, for good; another process has written since."""
    files, root = fsspec.core.url_to_fs(url)
    another_client().pipe_file(f"{root}/notes.txt", b"mine")
    files.ls(root)
    folder = open_folder(url)
    with pytest.raises(SnapshotError, match=r"has no manifest\.json"):
        SnapshotStore.open(url)
    other = RemoteFolder(url)
    other._objects._files = another_client()
    with SnapshotStore.create(other, "run", {}) as store:
        commit(store, 0)
        commit(store, 1)
    assert folder.exists("manifest.json")
    store = SnapshotStore.open(url)
    assert [store.load(snapshot)["count"].item() for snapshot in store.snapshots] == [0, 1]
    files.ls(root)
    another_client().rm_file(f"{root}/manifest.json")
    assert not folder.exists("manifest.json")
    files.ls(root)
    another_client().pipe_file(f"{root}/late.txt", b"mine")
    assert "late.txt" in Objects(url).names()
    another_client().rm_file(f"{root}/late.txt")
    with SnapshotStore.create(url, "run", {}):  # cleans what the manifest no longer names
        assert names_in(url) == {"notes.txt", "lock.json"}


def test_a_misspelt_bucket_is_not_made(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path, CheckpointHarvester("s3://misspelt/run"))
    with pytest.raises(
        SnapshotError, match=r"s3://misspelt/run can't be made: .*there is no bucket 'misspelt', .*make it first"
    ):
        trainer.fit(Project(), DigitsData())
    assert trainer.global_step == 0
    assert another_client().ls("", detail=False) == [BUCKET]
    monkeypatch.setattr("lightning_ckptkd.snapshots.folders.objects.PATIENCE_SECONDS", 0.5)
    server.down()
    try:
        with pytest.raises(SnapshotError, match="can't be looked at: TimeoutError"):  # which is no "no"
            open_folder(f"s3://{BUCKET}/run").exists("manifest.json")
    finally:
        server.up()
    monkeypatch.undo()
    another_client().mkdir("misspelt")
    make_trainer(tmp_path, CheckpointHarvester("s3://misspelt/run"), max_epochs=1).fit(Project(), DigitsData())
    assert len(SnapshotStore.open("s3://misspelt/run").snapshots) == 1
    SnapshotStore.create("s3://misspelt", "run", {}).close()
    another_client().rm("misspelt", recursive=True)


def test_folders_are_made_where_a_store_has_them() -> None:
    open_folder("memory://a/b/c").make()
    assert fsspec.filesystem("memory").isdir("/a/b/c")


def test_a_write_that_fails_leaves_what_was_there(url: str, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_ckptkd.snapshots.folders.objects.PATIENCE_SECONDS", 0.5)
    folder = open_folder(url)
    folder.write("notes.json", [b"old ", b"content"], "")
    server.down()
    try:
        with pytest.raises(SnapshotError, match=r"notes\.json could not be written \(9 bytes\)"):
            folder.write("notes.json", [b"new", memoryview(b" parts")], "")
    finally:
        server.up()
    assert folder.read("notes.json") == b"old content"


def test_a_store_that_hangs_is_waited_for_within_a_bound(
    server: S3Server, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one, this training would wait for minutes at each of its snapshots."""
    patience = "lightning_ckptkd.snapshots.folders.objects.PATIENCE_SECONDS"

    class Hang(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 2:
                harvester._recorder.flush()  # type: ignore[union-attr]
                monkeypatch.setattr(patience, 0.5)  # for a store that is gone; a slow machine may take its time
                server.hang()
            if trainer.current_epoch == 5:
                harvester._recorder.flush()  # type: ignore[union-attr]
                monkeypatch.undo()
                server.go_on()

    harvester = CheckpointHarvester(url)
    trainer = make_trainer(tmp_path, harvester, Hang(), max_epochs=6)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            trainer.fit(Project(), DigitsData())
    finally:
        server.go_on()
    dropped = [str(one.message) for one in said if "CheckpointHarvester" in str(one.message)]
    assert len(dropped) == 3
    for step, text in zip((12, 16, 20), dropped, strict=True):
        assert f"the snapshot at step {step} is not stored: {url}/" in text
        assert "the store did not answer within" in text and "Training goes on; the next snapshot is tried." in text
    assert [snapshot.epoch for snapshot in SnapshotStore.open(url).snapshots] == [0, 1, 5]
    assert json.loads(Objects(url).get("manifest.json"))["run_id"] == harvester._run_id


def test_one_bound_for_all_requests_of_a_piece_of_work(
    server: S3Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a short one after a failure, until the store answers again."""
    limits: list[float] = []
    real = fsspec.asyn.sync

    def sync(*arguments: Any, timeout: float, **options: Any) -> Any:
        limits.append(timeout)
        return real(*arguments, timeout=timeout, **options)

    objects = Objects(url)
    objects.put("one", b"x")
    monkeypatch.setattr(fsspec.asyn, "sync", sync)
    with objects.bounded():
        for _ in range(3):
            objects.get("one", 0)
        objects.get("one", 5 * 2**20)
    assert 30 >= limits[0] > limits[1] > limits[2] > 20
    assert 35 >= limits[3] > 25, "bytes get time on top"
    limits.clear()
    objects.get("one", 0)
    assert limits == [30.0]
    server.down()
    try:
        for _ in range(2):
            with pytest.raises(Exception, match=r"Could not connect|did not answer within 3 s"):
                objects.get("one", 0)
    finally:
        server.up()
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            objects.get("none", 0)
    assert limits == [30.0, 30.0, 3.0, 3.0, 30.0]


def test_training_bounds_each_snapshot_as_a_whole(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bounded: list[bool] = []
    real = Objects._call

    def watch(self: Objects, method: str, *arguments: Any, **options: Any) -> Any:
        if method == "pipe_file" and str(arguments[0]).endswith((".safetensors", "manifest.json")):
            bounded.append(self._started is not None)
        return real(self, method, *arguments, **options)

    monkeypatch.setattr(Objects, "_call", watch)
    make_trainer(tmp_path, CheckpointHarvester(url), max_epochs=1).fit(Project(), DigitsData())
    assert len(bounded) == 3
    assert all(bounded)


def test_a_second_server_in_one_process_is_found(server: S3Server) -> None:
    with s3_server() as second:
        Objects(f"s3://{BUCKET}/second").put("manifest.json", b"{}")
        assert second.endpoint != server.endpoint
        assert Objects(f"s3://{BUCKET}/second").exists("manifest.json")
    assert not Objects(f"s3://{BUCKET}/second").exists("manifest.json")
