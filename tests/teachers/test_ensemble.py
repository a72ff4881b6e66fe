from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_ckptkd import ArgumentError, CheckpointHarvester, SnapshotError, SnapshotStore, TeacherError
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.teachers import TeacherEnsemble
from lightning_ckptkd.teachers.logit_checks import check_finite
from tests.projects import DigitsData, Project, digits, make_trainer, to_write

X = digits(0, 16).tensors[0]


def test_members_are_the_snapshots(store: SnapshotStore) -> None:
    skeleton = Project()
    before = {name: value.clone() for name, value in skeleton.state_dict().items()}
    ensemble = TeacherEnsemble.load(store, store.snapshots, skeleton)
    logits = ensemble(Batch(X))
    assert logits.shape == (4, 16, 10)
    assert len(ensemble) == 4
    reference = Project().eval()
    for index, snapshot in enumerate(store.snapshots):
        reference.load_state_dict(store.load(snapshot))
        torch.testing.assert_close(logits[index], reference(X).detach())
    assert all(torch.equal(value, before[name]) for name, value in skeleton.state_dict().items())


def test_frozen_in_eval_mode_whatever_happens(store: SnapshotStore) -> None:
    ensemble = TeacherEnsemble.load(store, store.snapshots[:2], Project())
    first = ensemble(Batch(X))
    ensemble.members[0].train()
    ensemble.members[1].backbone[1].train()
    assert torch.equal(ensemble(Batch(X)), first)
    assert torch.equal(ensemble(Batch(X)), first), "BatchNorm's statistics have not moved"
    assert not first.requires_grad
    assert not any(parameter.requires_grad for member in ensemble.members for parameter in member.parameters())


def test_a_skeleton_that_a_trainer_holds(trained: tuple[Path, Project], store: SnapshotStore) -> None:
    member = TeacherEnsemble.load(store, store.snapshots[:1], trained[1]).members[0]
    assert trained[1]._trainer is not None
    assert member._trainer.validating


def test_skeletons_that_are_made_late_or_keep_a_graph(store: SnapshotStore) -> None:
    class Late(Project):
        def __init__(self) -> None:
            super().__init__()
            del self.backbone, self.classifier

        def configure_model(self) -> None:
            made = Project()
            self.backbone, self.classifier = made.backbone, made.classifier

    assert TeacherEnsemble.load(store, store.snapshots[:1], Late())(Batch(X)).shape == (1, 16, 10)
    keeping = Project()
    keeping.last = keeping(X)  # as pruned layers keep their weight
    assert TeacherEnsemble.load(store, store.snapshots[:1], keeping)(Batch(X)).shape == (1, 16, 10)
    assert keeping.last.requires_grad
    keeping.all = [keeping(X)]
    with pytest.raises(TeacherError, match=r"teacher=Project can't be copied: .*Give a new instance"):
        TeacherEnsemble.load(store, store.snapshots[:1], keeping)


def test_a_part_of_what_was_harvested(store: SnapshotStore) -> None:
    ensemble = TeacherEnsemble.load(store, store.snapshots[:1], Project().classifier, submodule="classifier")
    assert ensemble(Batch(torch.randn(3, 16))).shape == (1, 3, 10)
    with pytest.raises(ArgumentError, match=r"submodule='clasifier'"):
        TeacherEnsemble.load(store, store.snapshots[:1], Project().classifier, submodule="clasifier")
    with pytest.raises(TeacherError, match=r"give submodule='classifier'"):
        TeacherEnsemble.load(store, store.snapshots[:1], Project().classifier)


def test_the_whole_where_a_part_was_harvested(tmp_path: Path) -> None:
    project = Project()
    make_trainer(tmp_path, CheckpointHarvester(tmp_path / "h", submodule="classifier"), max_epochs=1).fit(
        project, DigitsData()
    )
    store = SnapshotStore.open(tmp_path / "h")
    ensemble = TeacherEnsemble.load(store, store.snapshots, Project())
    assert ensemble(Batch(torch.randn(3, 16))).shape == (1, 3, 10)


def test_snapshots_that_do_not_fit_are_named(store: SnapshotStore) -> None:
    file = store.snapshots[0].file
    with pytest.raises(TeacherError, match=rf"{file} does not fit teacher=Project. shapes differ: classifier.weight"):
        TeacherEnsemble.load(store, store.snapshots, Project(num_classes=7))
    with pytest.raises(TeacherError, match=r"does not fit teacher=Linear"):
        TeacherEnsemble.load(store, store.snapshots, nn.Linear(2, 2))


def test_nan_can_not_teach(store: SnapshotStore) -> None:
    weights = store.load(store.snapshots[0])
    weights["classifier.weight"][0, 0] = float("inf")
    with to_write(Path(store.folder.location)) as writer:
        spoilt = writer.commit(weights, epoch=0, global_step=store.snapshots[0].global_step)
    with pytest.raises(TeacherError, match=rf"{spoilt.file} holds NaN or infinity in 'classifier.weight'"):
        TeacherEnsemble.load(store, [spoilt], Project())


def test_a_changed_file_is_not_loaded(store: SnapshotStore) -> None:
    first, second = (Path(store.folder / snapshot.file) for snapshot in store.snapshots[:2])
    first.write_bytes(second.read_bytes())
    with pytest.raises(SnapshotError, match="does not have the SHA-256"):
        TeacherEnsemble.load(store, store.snapshots, Project())


def test_teachers_of_different_numbers_of_classes() -> None:
    members = [nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 5)]
    ensemble = TeacherEnsemble(members, ["epoch 1", "epoch 2", "epoch 3"])
    x = torch.randn(2, 4)
    told = r"differ in shape, \(N, K\) .*epoch 1: \(2, 3\), epoch 2: \(2, 3\), epoch 3: \(2, 5\).*one number of classes"
    with pytest.raises(TeacherError, match=told):
        ensemble(Batch(x))
    with pytest.raises(TeacherError, match=r"\(epoch 3: \(2, 5\), epoch 1: \(2, 3\)\)"):
        ensemble(Batch(x), [2, 0])
    assert ensemble(Batch(x), [0, 1]).shape == (2, 2, 3)
    assert ensemble(Batch(x), [2]).shape == (1, 2, 5)
    with pytest.raises(TeacherError, match=r"epoch 1: \(1, 3\)"):
        TeacherEnsemble(
            [nn.Sequential(nn.Unflatten(0, (1, 2)), nn.Flatten(1), nn.Linear(8, 3)), members[0]], ["epoch 1", "2"]
        )(Batch(x))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_not_finite_are_named(value: float) -> None:
    logits = torch.randn(3, 4, 5)
    check_finite(logits, ["a", "b", "c"])
    logits[1, 2, 3] = value
    with pytest.raises(TeacherError, match=rf"Teacher b gives {value} for class 3 of sample 2 .*Choose another.*mend"):
        check_finite(logits, ["a", "b", "c"])


class LiveBytes(TorchDispatchMode):
    """The most bytes of new tensors that lived at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._storages = {key: found for key, found in self._storages.items() if not found[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._storages.values()))
        return made


@pytest.mark.parametrize("folded", [False, True])
def test_activations_of_one_teacher_at_a_time(folded: bool) -> None:
    x = torch.randn(32, 1, 8, 8)
    peaks = {}
    for count in (1, 6):
        ensemble = TeacherEnsemble([Project() for _ in range(count)], [str(n) for n in range(count)])
        if folded:
            assert ensemble.fold(Batch(x), 1e-5)[1]
        with LiveBytes() as live:
            logits = ensemble(Batch(x))
        peaks[count] = live.peak
        del logits
    logit_bytes = 32 * 10 * 4
    assert peaks[1] > 32 * 8 * 64 * 4, "one layer's maps at least"
    assert peaks[6] <= peaks[1] + 2 * 6 * logit_bytes, "the logits of six, and the stack of them"


def test_teachers_of_another_output() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Any:
            return {"scores": self.fc(x)}

    batch = Batch(torch.randn(2, 4))
    with pytest.raises(ArgumentError, match=r"Named returns a mapping with 'scores': .*, not a tensor.*logits_key"):
        TeacherEnsemble([Named()], ["one"])(batch)
    assert TeacherEnsemble([Named()], ["one"], "scores")(batch).shape == (1, 2, 3)
    with pytest.raises(ArgumentError, match="needs at least one teacher"):
        TeacherEnsemble([], [])
