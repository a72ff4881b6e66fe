"""Scoring the best snapshots by what a student learns from them in a short time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.selecting.borrowing import borrowed
from lightning_ckptkd.selecting.choosing import STUDENT
from lightning_ckptkd.selecting.features import extract_features
from lightning_ckptkd.selecting.items import Harvested, Item
from lightning_ckptkd.selecting.layers import Layers
from lightning_ckptkd.selecting.network_stack import state_of
from lightning_ckptkd.selecting.probe import digest
from lightning_ckptkd.selecting.proxy_students import distil_together
from lightning_ckptkd.selecting.proxy_teachers import ProxyTeachers
from lightning_ckptkd.selecting.rows import ProbeRows
from lightning_ckptkd.selecting.rules import ScoringRule
from lightning_ckptkd.selecting.score import Score
from lightning_ckptkd.selecting.score_files import scoring_key
from lightning_ckptkd.selecting.settings import SelectionSettings
from lightning_ckptkd.selecting.student_proxy import StudentProxy
from lightning_ckptkd.selecting.training_data import TrainingData
from lightning_ckptkd.snapshots import Candidate
from lightning_ckptkd.snapshots.weights import load_into
from lightning_ckptkd.tasks.alone import detach
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.trainer.ranks import current_rank, num_ranks, on_all_ranks

_LOGITS_ALONE = Layers(None, False, None)
_MOST_BYTES = 2**31  # of teachers and students that are trained side by side
_STATES = 4  # of a student's weights: themselves, their gradients, and two that an optimiser like Adam keeps


class ProxyScorer:
    """Distils a copy of the student from each of some snapshots, and keeps the scores beside the snapshots'.

    Args:
        harvested: The snapshots.
        settings: How candidates were found.
        rule: Theirs.
        proxy: The student and its budget.
        module: A module that the snapshots fit.
        rows: The samples that students are judged by, laid out.
        data: The samples that they are trained on.
        device: Where they are trained.

    Raises:
        ArgumentError: If the ranks have different training samples.
    """

    def __init__(
        self,
        harvested: Harvested,
        settings: SelectionSettings,
        rule: ScoringRule,
        proxy: StudentProxy,
        module: nn.Module,
        rows: ProbeRows,
        data: TrainingData,
        device: torch.device | str,
    ) -> None:
        self._memo, self._settings, self._proxy = harvested.memo, settings, proxy
        self._items = {item.snapshot.file: item for item in harvested.items}
        self._module, self._rows, self._data, self._device = module, rows, data, device
        found = on_all_ranks(lambda: digest(data.batches(1, proxy.batch_size, settings.seed)))
        first = found[current_rank()]
        if len(set(found)) > 1:
            raise ArgumentError(
                "student_proxy: the ranks have different training samples, so students can't be compared. Train on "
                "a dataset with a length, or run `ckptkd select` on one device."
            )
        self._key = scoring_key(settings, rule, module, rows.probe, first, _describe(proxy))

    def score(self, candidates: Sequence[Candidate], *, progress: bool) -> dict[str, Score]:
        """Score each candidate by its student, spread over ranks; what was scored before is not trained again.

        Every rank gets all scores, by file.
        """
        own = candidates[current_rank() :: num_ranks()]
        total = self._proxy.steps * len(own)
        with tqdm(total=total, desc="Training proxy students", unit="step", disable=not progress) as bar:

            def work() -> list[Score]:
                with borrowed(self._module, self._device):
                    return self._score([self._items[candidate.file] for candidate in own], bar)

            scores = [score for part in on_all_ranks(work) for score in part]
        if current_rank() == 0:
            self._memo.gather(self._key, scores)
        return {score.candidate.file: score for score in scores}

    def _score(self, items: Sequence[Item], bar: Any) -> list[Score]:
        scores = {item.snapshot.file: self._memo.read(self._key, item.snapshot) for item in items}
        found = {file: score for file, score in scores.items() if score is not None and STUDENT in score.terms}
        bar.update(self._proxy.steps * len(found))
        missing = [item for item in items if item.snapshot.file not in found]
        size = self._most_at_once()
        for start in range(0, len(missing), size):
            group = missing[start : start + size]
            for item, score in zip(group, self._train(group, bar), strict=True):
                self._memo.write(self._key, item.snapshot, score)
                found[item.snapshot.file] = score
        return [found[item.snapshot.file] for item in items]

    def _most_at_once(self) -> int:
        """How many candidates are tried side by side."""
        needed = _bytes_of(self._module) + _STATES * _bytes_of(self._proxy.student)
        return max(1, _MOST_BYTES // max(1, needed))

    def _train(self, items: Sequence[Item], bar: Any) -> Iterator[Score]:
        """Train a student from each snapshot, side by side, and score it."""
        settings, proxy, rows = self._settings, self._proxy, self._rows
        states = []
        for item in items:
            load_into(self._module, item.load(), item.snapshot.file, argument="model")
            states.append({name: tensor.detach().clone() for name, tensor in state_of(self._module).items()})
        self._module.eval()

        def batches() -> Iterator[Batch]:
            for batch in self._data.batches(proxy.steps, proxy.batch_size, settings.seed):
                yield batch.to(self._device)
                bar.update(len(items))

        teachers = ProxyTeachers(self._module, states, settings.logits_key)
        students = distil_together(teachers, batches(), proxy, rows.task, self._device)
        for item, student in zip(items, students, strict=True):
            detach(student)  # a copy of a student has forgotten that it runs alone
            yield self._judge(item, student.eval())

    def _judge(self, item: Item, student: nn.Module) -> Score:
        proxy, rows = self._proxy, self._rows
        found = extract_features(student, rows, _LOGITS_ALONE, proxy.logits_key, "student_proxy.logits_key")
        if not found.finite:
            raise ArgumentError(
                f"student_proxy: after {proxy.steps} steps with {item.snapshot.file} the student's logits are not "
                "finite. Give student_proxy an optimizer with a lower learning rate."
            )
        assert found.logits is not None
        term = rows.term(rows.task.label_gains(found.logits, rows.targets, rows.row_folds))
        candidate = replace(
            item.candidate(),
            student_information=term.value,
            student_error=term.error,
            student_accuracy=None if found.hits is None else rows.share(found.hits).value,
        )
        return Score(candidate, {STUDENT: term})


def _bytes_of(network: nn.Module) -> int:
    """What the weights of a network take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state_of(network).values())


def _describe(proxy: StudentProxy) -> list[Any]:
    """All of a proxy that a score depends on, in JSON's types."""
    hashed = hashlib.sha256()
    for name, value in proxy.student.state_dict().items():
        hashed.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        hashed.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    budget = [proxy.steps, proxy.batch_size, proxy.alpha, proxy.temperature]
    optimizer = repr(proxy.optimizer(proxy.student.parameters()))
    return [repr(proxy.student), hashed.hexdigest(), optimizer, *budget]
