"""Scoring the best snapshots by what a student learns from them in a short time."""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.information.folds import NUM_FOLDS, assign_folds
from lightning_ckptkd.information.label import accuracy, head_gains
from lightning_ckptkd.selecting.borrowing import borrowed
from lightning_ckptkd.selecting.probe import Probe
from lightning_ckptkd.selecting.score import Score
from lightning_ckptkd.selecting.score_files import ScoreFiles, scoring_key
from lightning_ckptkd.selecting.scoring import Term, num_groups
from lightning_ckptkd.selecting.settings import SelectionSettings
from lightning_ckptkd.selecting.student_proxy import StudentProxy, distil_briefly
from lightning_ckptkd.snapshots import Candidate, SnapshotStore
from lightning_ckptkd.snapshots.weights import load_into
from lightning_ckptkd.tasks.legacy import get_logits
from lightning_ckptkd.tasks.loaders import is_indexed, load_samples, sample_indices
from lightning_ckptkd.trainer.ranks import current_rank, num_ranks, on_all_ranks
from lightning_ckptkd.trainer.seeding import seed_all


@dataclass(frozen=True)
class TrainingData:
    """What the proxy's students are trained on.

    Attributes:
        loader: The run's training data.
        unpack: Gives X and Y of a batch.
    """

    loader: Iterable[Any]
    unpack: Callable[[Any], tuple[Tensor, Tensor]]

    def batches(self, steps: int, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The same batches at each call with the same seed, also where transforms are random.

        Raises:
            ArgumentError: If there are no samples.
        """
        seed_all(seed)
        found = map(self.unpack, self._all_batches(steps * batch_size, batch_size, seed))
        yield from itertools.islice(found, steps)

    def _all_batches(self, size: int, batch_size: int, seed: int) -> Iterator[Any]:
        if not is_indexed(self.loader):
            while True:
                yield from _at_least_one(self.loader)
        indices = sample_indices(self.loader)
        generator = torch.Generator().manual_seed(seed)
        rounds = -(-size // max(1, len(indices)))
        shuffled = [indices[torch.randperm(len(indices), generator=generator)] for _ in range(rounds)]
        yield from _at_least_one(load_samples(self.loader, torch.cat(shuffled)[:size].tolist(), batch_size))


class ProxyScorer:
    """Distils a copy of the student from one snapshot after another, and keeps the scores in the harvest's folder.

    Args:
        store: The harvest.
        settings: How candidates were found.
        proxy: The student and its budget.
        module: A module that the snapshots fit.
        probe: The samples that students are judged by.
        data: The samples that they are trained on.
        device: Where they are trained.

    Raises:
        ArgumentError: If the ranks have different training samples.
    """

    def __init__(
        self,
        store: SnapshotStore,
        settings: SelectionSettings,
        proxy: StudentProxy,
        module: nn.Module,
        probe: Probe,
        data: TrainingData,
        device: torch.device | str,
    ) -> None:
        self._store, self._settings, self._proxy = store, settings, proxy
        self._module, self._probe, self._data, self._device = module, probe, data, device
        self._folds = assign_folds(len(probe), NUM_FOLDS, settings.seed)
        (first,) = data.batches(1, proxy.batch_size, settings.seed)
        digest = Probe(*first).digest()
        if len(set(on_all_ranks(lambda: digest))) > 1:
            raise ArgumentError(
                "student_proxy: the ranks have different training samples, so students can't be compared. Train on "
                "a dataset with a length, or run `ckptkd select` on one device."
            )
        self._files = ScoreFiles(store, scoring_key(settings, module, probe, digest, _describe(proxy)))

    def score(self, candidates: Sequence[Candidate], *, progress: bool) -> dict[str, Score]:
        """Score each candidate by its student, spread over ranks; what was scored before is not trained again.

        Every rank gets all scores, by file.
        """
        own = candidates[current_rank() :: num_ranks()]
        by_file = {snapshot.file: snapshot for snapshot in self._store.snapshots}
        total = self._proxy.steps * len(own)
        with tqdm(total=total, desc="Training proxy students", unit="step", disable=not progress) as bar:

            def work() -> list[Score]:
                scores = []
                with borrowed(self._module, self._device):
                    for candidate in own:
                        snapshot = by_file[candidate.file]
                        score = self._files.read(snapshot)
                        if score is None:
                            score = self._train(candidate, bar)
                            self._files.write(snapshot, score)
                        else:
                            bar.update(self._proxy.steps)
                        scores.append(score)
                return scores

            scores = [score for part in on_all_ranks(work) for score in part]
        if current_rank() == 0:
            self._files.gather([by_file[score.candidate.file] for score in scores], scores)
        return {score.candidate.file: score for score in scores}

    def _train(self, candidate: Candidate, bar: Any) -> Score:
        settings, proxy, labels = self._settings, self._proxy, self._probe.labels
        (snapshot,) = (found for found in self._store.snapshots if found.file == candidate.file)
        load_into(self._module, self._store.load(snapshot), snapshot.file, argument="model")
        self._module.eval()
        student = copy.deepcopy(proxy.student).to(self._device)

        def teacher(inputs: Tensor) -> Tensor:
            with torch.no_grad():
                return get_logits(self._module(inputs), settings.logits_key, type(self._module).__name__)

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for x, y in self._data.batches(proxy.steps, proxy.batch_size, settings.seed):
                yield x.to(self._device), y.to(self._device)
                bar.update(1)

        distil_briefly(student, teacher, batches(), proxy)
        logits = self._logits(student)
        if not bool(torch.isfinite(logits).all()):
            raise ArgumentError(
                f"student_proxy: after {proxy.steps} steps with {candidate.file} the student's logits are not finite. "
                "Give student_proxy an optimizer with a lower learning rate."
            )
        gains = head_gains(logits, labels, self._folds)
        term = Term.of(gains, settings.seed, num_groups(len(labels)))
        found = replace(
            candidate,
            student_information=term.nats,
            student_error=term.error,
            student_accuracy=accuracy(logits, labels),
        )
        return Score(found, score_replicates=term.replicates)

    def _logits(self, student: nn.Module) -> Tensor:
        student.eval()
        with torch.no_grad():
            parts = [
                self._proxy.logits(student, inputs.to(self._device)).cpu()
                for inputs in torch.split(self._probe.inputs, self._settings.batch_size)
            ]
        return torch.cat(parts)


def _at_least_one(loader: Iterable[Any]) -> Iterator[Any]:
    batch = None
    for batch in loader:
        yield batch
    if batch is None:
        raise ArgumentError("student_proxy: the training data have no batch. Give a train= dataloader that has.")


def _describe(proxy: StudentProxy) -> list[Any]:
    """All of a proxy that a score depends on, in JSON's types."""
    hashed = hashlib.sha256()
    for name, value in proxy.student.state_dict().items():
        hashed.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        hashed.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    budget = [proxy.steps, proxy.batch_size, proxy.alpha, proxy.temperature]
    optimizer = repr(proxy.optimizer(proxy.student.parameters()))
    return [repr(proxy.student), hashed.hexdigest(), optimizer, *budget]
