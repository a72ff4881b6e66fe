"""Looking at a network on a few samples: where F and the logits are read, and which task it is."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightning_ckptkd.errors import ArgumentError, CkptKDError
from lightning_ckptkd.rank_zero import rank_zero_warn
from lightning_ckptkd.selecting.borrowing import borrowed
from lightning_ckptkd.selecting.layers import Layers, Seen, find_layers, placed, watch
from lightning_ckptkd.selecting.probe import Probe
from lightning_ckptkd.selecting.rows import ProbeRows
from lightning_ckptkd.selecting.rules import Needs, ScoringRule
from lightning_ckptkd.selecting.settings import SelectionSettings
from lightning_ckptkd.selecting.student_proxy import StudentProxy
from lightning_ckptkd.tasks.base import Task
from lightning_ckptkd.tasks.batch import Batch, split
from lightning_ckptkd.tasks.infer import infer_task
from lightning_ckptkd.tasks.multiclass import Multiclass
from lightning_ckptkd.tasks.outputs import get_output

LOOKED_AT = 64  # samples
_LISTED = 10  # classes that are named in a message


@dataclass(frozen=True)
class Reading:
    """How a network is read.

    Attributes:
        layers: Where F is.
        task: What its outputs and the targets are.
        num_classes: K, of the rows of its logits; None where it gives none.
    """

    layers: Layers
    task: Task
    num_classes: int | None


def check_model(
    settings: SelectionSettings,
    rule: ScoringRule,
    module: nn.Module,
    samples: Probe,
    proxy: StudentProxy | None = None,
    *,
    whole: bool,
) -> Reading:
    """Try on a few samples whether a module suits the settings, before it is trained for days.

    The module is handed back as it came.

    Args:
        settings: What will be asked of it.
        rule: Theirs.
        module: What will be harvested.
        samples: A few samples.
        proxy: A student that will be asked for logits too.
        whole: Whether ``module`` is all that is trained, rather than a part of it.

    Returns:
        How it is read.

    Raises:
        ArgumentError: If the layer, the logits or the labels are not as the settings need them.
    """
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    rule.check(samples)
    with borrowed(module, device):
        reading, output = look(settings, rule, module, samples, whole=whole, need_logits=proxy is not None)
    if _has_targets(reading.task, samples):  # of a few samples all may have none
        rows = ProbeRows.of(samples, reading.task, reading.num_classes, settings.batch_size, settings.seed)
        rule.check_rows(rows, joint=settings.joint)
    if proxy is not None and output is not None:
        proxy.check_student(first_batch(samples), output.cpu())
    return reading


def look(
    settings: SelectionSettings,
    rule: ScoringRule,
    module: nn.Module,
    probe: Probe,
    *,
    whole: bool,
    need_logits: bool = False,
) -> tuple[Reading, Tensor | None]:
    """Run a network on a few samples and see how it is to be read.

    Args:
        settings: What is asked of it.
        rule: Theirs.
        module: The network, with any weights; it is left in eval mode.
        probe: Samples, of which the first are looked at.
        whole: Whether ``module`` is all that was trained. The output of a part of it is taken for logits only if it
            is that of its last layer itself: a backbone's features are no logits.
        need_logits: Whether they are needed, whatever the rule says.

    Returns:
        How to read it, and its output on :func:`first_batch`; None where that is no logits.

    Raises:
        ArgumentError: If the layer or the logits are not as they should be, or no task fits.
    """
    module.eval()
    needs = rule.needs(joint=settings.joint)
    batch, name = first_batch(probe), type(module).__name__
    try:
        seen = watch(module, placed(module, batch))
    except CkptKDError:
        raise
    except Exception as error:  # whatever another network than the one that was trained, or its own code, raises
        raise ArgumentError(
            f"model: {name} can't be run on the probe's samples ({type(error).__name__}: {str(error)[:300]}). Give the "
            "module that was harvested, and batches as it was trained on; input_keys says what of them it takes."
        ) from error
    layers = find_layers(module, seen, needs.layer, need_spatial=needs.feature_map, need_layer=needs.vectors)
    required = needs.logits or need_logits
    output = _find_logits(seen, settings.logits_key, name, whole=whole, required=required)
    if output is None and required:
        raise ArgumentError(_no_logits(needs))
    if output is not None:
        try:
            task, num_classes = _see_task(settings, output, probe, name)
            return Reading(layers, task, num_classes), output
        except ArgumentError:  # where nothing needs them, they are not logits
            if required:
                raise
    _check_labels(batch.targets)
    task = settings.named_task() or Multiclass(ignore_index=settings.ignore_index)
    return Reading(replace(layers, gives_logits=False), task, None), None


def first_batch(probe: Probe) -> Batch:
    """The samples that are looked at."""
    return next(split(probe.batches, LOOKED_AT))


def tell_of_missing_classes(rows: ProbeRows) -> None:
    """Warn where the probe set has no sample of some classes, and could have."""
    targets, num_classes = rows.targets, rows.num_classes
    if (
        not rows.task.expects_each_class
        or num_classes is None
        or num_classes < 2
        or targets.dim() != 1
        or targets.is_floating_point()
    ):
        return
    present = set(targets.tolist())
    missing = [str(label) for label in range(num_classes) if label not in present]
    if missing:
        listed = ", ".join([*missing[:_LISTED], *(["…"] if len(missing) > _LISTED else [])])
        rank_zero_warn(
            f"The probe set has no sample of {len(missing)} of {num_classes} classes ({listed}), so snapshots are "
            "scored without them. Give a larger probe_size, or a probe= dataloader that has all classes."
        )


def _find_logits(seen: Seen, key: str | int | None, name: str, *, whole: bool, required: bool) -> Tensor | None:
    output = seen.output
    if isinstance(output, Tensor):
        return output if key is not None or whole or seen.is_head else None
    if key is not None or required:
        return get_output(output, key, name)
    return None


def _see_task(settings: SelectionSettings, output: Tensor, probe: Probe, name: str) -> tuple[Task, int]:
    """The task of an output on the first batch, and K; checked on all targets."""
    batch = first_batch(probe)
    targets = batch.targets
    task = settings.named_task() or infer_task(output, targets, settings.ignore_index, batch.inputs, name)
    task.check(output, targets, name)
    num_classes = task.flatten(output).shape[1]
    if _has_targets(task, probe):
        task.check_targets(_all_targets(task, probe), num_classes)
    return task, num_classes


def _has_targets(task: Task, probe: Probe) -> bool:
    return any(len(task.labelled(batch.targets)) for batch in probe.batches)


def _all_targets(task: Task, probe: Probe) -> Tensor:
    return torch.cat([task.flatten_targets(batch.targets) for batch in probe.batches])


def _no_logits(needs: Needs) -> str:
    return (
        f"{needs.what if needs.logits else 'student_proxy'} needs the teacher's logits, and the harvested module gives "
        "none. Harvest the whole classifier, say with logits_key where its output holds them, or "
        f"{needs.remedy if needs.logits else 'leave student_proxy out'}."
    )


def _check_labels(targets: Tensor) -> None:
    """Check that targets are class indices, where there are no logits to tell what else they could be."""
    count = len(targets)
    if targets.is_floating_point() or targets.shape not in ((count,), (count, 1)):
        raise ArgumentError(
            f"Labels should be class indices of shape ({count},), but are {targets.dtype} of shape "
            f"{tuple(targets.shape)}. Say what they are with task=, or which part they are with target_key."
        )
