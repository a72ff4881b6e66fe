"""Matching of the student's features with each teacher's: the option, the projectors, and what hooks catch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn

from lightning_ckptkd.errors import ArgumentError, TeacherError
from lightning_ckptkd.losses import FeatureLoss
from lightning_ckptkd.losses.arguments import check_term_weight
from lightning_ckptkd.losses.combine import normalised_weights
from lightning_ckptkd.snapshots.weights import get_submodule
from lightning_ckptkd.tasks.legacy import describe_output
from lightning_ckptkd.teachers.ensemble import TeacherEnsemble
from lightning_ckptkd.trainer.seeding import keep_random_state, seed_by

_PREFIX = "projectors."


@dataclass(frozen=True)
class FeatureMatching:
    """Bring a layer's output in the student close to one in the teachers (FitNets, arXiv 1412.6550).

    ``weight`` times the mean over a step's teachers of their :class:`~lightning_ckptkd.losses.FeatureLoss` is added to
    the loss of :class:`DistillationModule`. Each teacher has a projector of its own, trained with the student in the
    steps that the teacher runs in.

    Attributes:
        student_layer: Attribute path, in the student, of the module whose output is matched; the last one, where it
            runs several times in a forward pass.
        teacher_layer: The same in a teacher: in what was harvested, so without the path of its ``submodule``.
        student_dim: Channels of the student's maps (N, C, H, W), or the last dimension of its features (N, ..., D).
        teacher_dim: The same of the teachers'.
        spatial: Whether the outputs are maps; heights and widths may differ.
        weight: What the mean is multiplied by, 0 or more.

    Raises:
        ArgumentError: If a dimension is not 1 or more, or the weight negative or not finite.
    """

    student_layer: str
    teacher_layer: str
    student_dim: int
    teacher_dim: int
    spatial: bool = True
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("student_dim", self.student_dim), ("teacher_dim", self.teacher_dim)):
            if value < 1:
                raise ArgumentError(f"{name} should be 1 or more, got {value}.")
        check_term_weight("weight", self.weight)


@dataclass
class StepFeatures:
    """What was caught in one step.

    Attributes:
        student: The student's features; None before it ran.
        teachers: The features of each teacher that ran, without gradient, by its place.
    """

    student: Tensor | None = None
    teachers: dict[int, Tensor] = field(default_factory=dict)


def check_layers(option: FeatureMatching, student: nn.Module, teachers: TeacherEnsemble) -> None:
    """Check that the layers are there.

    Raises:
        ArgumentError: Names the option, the network and near names.
    """
    get_submodule(student, option.student_layer, "feature_matching.student_layer")
    for member in teachers.members:
        get_submodule(member, option.teacher_layer, "feature_matching.teacher_layer")


def refuse_averaging(trainer: Trainer | None) -> None:
    """Refuse Lightning's averaging: it copies the module before the projectors are made, and saves the copy.

    Raises:
        ArgumentError: If the Trainer has such a callback.
    """
    callbacks: list[Callback] = [] if trainer is None else trainer.callbacks  # type: ignore[attr-defined]
    found = [type(callback).__name__ for callback in callbacks if isinstance(callback, WeightAveraging)]
    if found:
        raise ArgumentError(
            f"feature_matching: {found[0]} leaves the projectors out of its checkpoints, so that training could not be "
            "resumed. Leave one of them out."
        )


def make_projectors(option: FeatureMatching, count: int) -> nn.ModuleList:
    """New projectors, one for each teacher.

    Each is drawn by the global seed and its place alone, so the others do not change where a teacher is added, and
    nobody else's random numbers do.
    """
    seed = torch.initial_seed()
    made = nn.ModuleList()
    with keep_random_state(), torch.device("cpu"):
        for place in range(count):
            seed_by("projector", seed, place)
            made.append(FeatureLoss(option.student_dim, option.teacher_dim, option.spatial))
    return made


def make_saved_projectors(option: FeatureMatching | None, checkpoint: dict[str, Any]) -> nn.ModuleList:
    """As many projectors as a checkpoint has weights of, for its weights to be loaded into.

    Without the option there are none, and the checkpoint loses their weights: only training needs them.
    """
    state: dict[str, Any] = checkpoint.get("state_dict", {})
    saved = [name for name in state if name.startswith(_PREFIX)]
    if option is not None:
        return make_projectors(option, len({name.split(".")[1] for name in saved}))
    for name in saved:
        del state[name]
    return nn.ModuleList()


def check_resumed(
    projectors: nn.ModuleList, checkpoint: Mapping[str, Any], saved: Sequence[str], own: Sequence[str]
) -> None:
    """Check that a checkpoint's projectors are those of the run that resumes from it.

    Args:
        projectors: The run's; none where it does not match features.
        checkpoint: As it was saved.
        saved: Hash of each teacher of the checkpoint, in their order.
        own: The same of the run.

    Raises:
        TeacherError: If they are not; says what to change.
    """
    state: Mapping[str, Any] = checkpoint.get("state_dict", {})
    theirs = {name: tuple(value.shape) for name, value in state.items() if name.startswith(_PREFIX)}
    ours = {_PREFIX + name: tuple(value.shape) for name, value in projectors.state_dict().items()}
    if theirs != ours:
        raise TeacherError(
            f"feature_matching: the checkpoint's run has the projectors {_weights_in(theirs)}, this one "
            f"{_weights_in(ours)}. Give it as that run had it, or start a new run."
        )
    if ours and list(saved) != list(own):
        raise TeacherError(
            "feature_matching: the checkpoint's projectors belong to the same teachers in another order. Name their "
            "epochs in that order with choice=, or start a new run."
        )


def _weights_in(shapes: Mapping[str, tuple[int, ...]]) -> str:
    found = [f"{name} {list(shape)}" for name, shape in shapes.items() if name.endswith(".weight")]
    return ", ".join(found) or "none"


@contextmanager
def catch_features(
    option: FeatureMatching | None, student: nn.Module, teachers: TeacherEnsemble | None, which: Sequence[int] | None
) -> Iterator[StepFeatures]:
    """Catch the layers' outputs of the forward passes inside the ``with`` block.

    The features are copies: as the layer gave them, also where the next one works in place, and the teachers' fit for
    a loss although these run in inference mode.

    Args:
        option: Which layers; None catches nothing.
        student: The student.
        teachers: The teachers.
        which: Places of those that run; None: all.

    Raises:
        ArgumentError: At the end of the block, if a layer did not run or gave no tensor.
    """
    caught = StepFeatures()
    if option is None:
        yield caught
        return
    assert teachers is not None

    def catch_student(_: nn.Module, __: Any, output: Any) -> None:
        caught.student = _copied(output, "student", option.student_layer)

    def catch_teacher(place: int, output: Any) -> None:
        with torch.inference_mode(False):
            caught.teachers[place] = _copied(output, "teacher", option.teacher_layer)

    places = range(len(teachers)) if which is None else which
    with ExitStack() as hooks:
        layer = student.get_submodule(option.student_layer)
        hooks.callback(layer.register_forward_hook(catch_student).remove)
        for place in places:
            layer = teachers.members[place].get_submodule(option.teacher_layer)
            hook = layer.register_forward_hook(lambda _, __, output, place=place: catch_teacher(place, output))
            hooks.callback(hook.remove)
        yield caught
    if caught.student is None:
        raise _never_ran("student", option.student_layer)
    if len(caught.teachers) < len(places):
        raise _never_ran("teacher", option.teacher_layer)


def _copied(output: Any, who: str, layer: str) -> Tensor:
    if not isinstance(output, Tensor):
        raise ArgumentError(
            f"feature_matching.{who}_layer={layer!r} gives {describe_output(output)}; name a layer that gives one "
            "tensor."
        )
    return output.clone()


def _never_ran(who: str, layer: str) -> ArgumentError:
    return ArgumentError(
        f"feature_matching.{who}_layer={layer!r} is not called in the {who}'s forward pass, or only inside compiled "
        "code. Name a layer that is, and compile nothing around it."
    )


def match_features(projectors: nn.ModuleList, features: StepFeatures, weights: Tensor | None) -> Tensor:
    """The weighted mean of the losses with each teacher that ran.

    Args:
        projectors: A :class:`FeatureLoss` for each teacher, running or not.
        features: Of one step.
        weights: Of all teachers, shape (M,), 0 or more, divided by the sum of those that ran; None: the same for all.

    Returns:
        Shape ().

    Raises:
        ArgumentError: If the features do not have the shapes that the option says.
    """
    losses = torch.stack([projectors[place](features.student, found) for place, found in features.teachers.items()])
    own = None if weights is None else weights[list(features.teachers)]
    return (losses * normalised_weights(own, losses)).sum()


def zero_of_others(projectors: nn.ModuleList, ran: Collection[int]) -> Tensor | float:
    """Zero, made of the projectors whose teachers did not run: DDP waits for the gradients of all parameters."""
    others = [projector for place, projector in enumerate(projectors) if place not in ran]
    return sum((0.0 * parameter.sum() for other in others for parameter in other.parameters()), 0.0)


def drop_gradients_of_others(projectors: nn.ModuleList, ran: Collection[int]) -> None:
    """Leave the optimiser nothing for them, so that neither weight decay nor momentum moves them."""
    for place, projector in enumerate(projectors):
        if place not in ran:
            projector.zero_grad(set_to_none=True)
