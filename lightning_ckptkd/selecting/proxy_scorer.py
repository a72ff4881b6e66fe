"""Scoring the best snapshots by what a student learns from them in a short time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.selecting.borrowing import borrowed
from lightning_ckptkd.selecting.choosing import STUDENT
from lightning_ckptkd.selecting.features import extract_features
from lightning_ckptkd.selecting.items import Harvested, Item
from lightning_ckptkd.selecting.layers import Layers, forward, placed
from lightning_ckptkd.selecting.probe import digest
from lightning_ckptkd.selecting.rows import ProbeRows
from lightning_ckptkd.selecting.rules import ScoringRule
from lightning_ckptkd.selecting.score import Score
from lightning_ckptkd.selecting.score_files import scoring_key
from lightning_ckptkd.selecting.settings import SelectionSettings
from lightning_ckptkd.selecting.student_proxy import StudentProxy, distil_briefly
from lightning_ckptkd.selecting.training_data import TrainingData
from lightning_ckptkd.snapshots import Candidate
from lightning_ckptkd.snapshots.weights import load_into
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.tasks.outputs import get_output
from lightning_ckptkd.trainer.ranks import current_rank, num_ranks, on_all_ranks

_LOGITS_ALONE = Layers(None, False, None)


class ProxyScorer:
    """Distils a copy of the student from one snapshot after another, and keeps the scores beside the snapshots'.

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
                    return [self._score(candidate, bar) for candidate in own]

            scores = [score for part in on_all_ranks(work) for score in part]
        if current_rank() == 0:
            self._memo.gather(self._key, scores)
        return {score.candidate.file: score for score in scores}

    def _score(self, candidate: Candidate, bar: Any) -> Score:
        item = self._items[candidate.file]
        score = self._memo.read(self._key, item.snapshot)
        if score is None or STUDENT not in score.terms:
            score = self._train(item, bar)
            self._memo.write(self._key, item.snapshot, score)
        else:
            bar.update(self._proxy.steps)
        return score

    def _train(self, item: Item, bar: Any) -> Score:
        settings, proxy, file = self._settings, self._proxy, item.snapshot.file
        load_into(self._module, item.load(), file, argument="model")
        self._module.eval()
        student = proxy.copy_student().to(self._device)

        def teacher(batch: Batch) -> Tensor:
            output = forward(self._module, placed(self._module, batch))
            return get_output(output, settings.logits_key, type(self._module).__name__)

        def batches() -> Iterator[Batch]:
            for batch in self._data.batches(proxy.steps, proxy.batch_size, settings.seed):
                yield batch.to(self._device)
                bar.update(1)

        distil_briefly(student, teacher, batches(), proxy, self._rows.task)
        student.eval()
        found = extract_features(student, self._rows, _LOGITS_ALONE, proxy.logits_key, "student_proxy.logits_key")
        if not found.finite:
            raise ArgumentError(
                f"student_proxy: after {proxy.steps} steps with {file} the student's logits are not finite. "
                "Give student_proxy an optimizer with a lower learning rate."
            )
        assert found.logits is not None
        rows = self._rows
        term = rows.term(rows.task.label_gains(found.logits, rows.targets, rows.row_folds))
        candidate = replace(
            item.candidate(),
            student_information=term.value,
            student_error=term.error,
            student_accuracy=None if found.hits is None else rows.share(found.hits).value,
        )
        return Score(candidate, {STUDENT: term})


def _describe(proxy: StudentProxy) -> list[Any]:
    """All of a proxy that a score depends on, in JSON's types."""
    hashed = hashlib.sha256()
    for name, value in proxy.student.state_dict().items():
        hashed.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        hashed.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    budget = [proxy.steps, proxy.batch_size, proxy.alpha, proxy.temperature]
    optimizer = repr(proxy.optimizer(proxy.student.parameters()))
    return [repr(proxy.student), hashed.hexdigest(), optimizer, *budget]
