"""What feature matching does in training: the projectors, what hooks catch, the loss of it, and what a resume needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn

from lightning_ckptkd.errors import ArgumentError, TeacherError
from lightning_ckptkd.losses.combine import normalised_weights
from lightning_ckptkd.snapshots.weights import get_submodule
from lightning_ckptkd.tasks.batch import describe
from lightning_ckptkd.teachers.ensemble import TeacherEnsemble
from lightning_ckptkd.teachers.feature_matching import FeatureMatching, make_projectors

_PREFIX = "projectors."


@dataclass
class StepFeatures:
    """What was caught in one step.

    Attributes:
        student: The student's features; None before it ran.
        teachers: The features of each teacher that ran, without gradient, by its place.
    """

    student: Tensor | None = None
    teachers: dict[int, Tensor] = field(default_factory=dict)


class FeatureMatcher:
    """The features of a student and its teachers, and a projector for each teacher; without an option, nothing.

    It is no ``nn.Module``: the projectors are parameters of the module that takes :attr:`projectors` as its own. That
    list is filled in place, when the number of teachers is known.

    Args:
        option: Which layers.

    Attributes:
        option: Likewise.
        projectors: A :class:`FeatureLoss` for each teacher.
    """

    def __init__(self, option: FeatureMatching | None) -> None:
        self.option = option
        self.projectors = nn.ModuleList()
        self._matched: set[int] = set()  # places of the teachers that ran since the last optimiser step

    def prepare(self, student: nn.Module, teachers: TeacherEnsemble, device: torch.device) -> None:
        """Check the layers, and make the projectors unless they came from a checkpoint.

        Raises:
            ArgumentError: If a layer is not there; names the option, the network and near names.
        """
        if self.option is None:
            return
        get_submodule(student, self.option.student_layer, "feature_matching.student_layer")
        for member in teachers.members:
            get_submodule(member, self.option.teacher_layer, "feature_matching.teacher_layer")
        if len(self.projectors) != len(teachers):
            self._take_projectors(len(teachers), device)

    def refuse_averaging(self, trainer: Trainer | None) -> None:
        """Refuse Lightning's averaging: it copies the module before the projectors are made, and saves the copy.

        Raises:
            ArgumentError: If the Trainer has such a callback.
        """
        callbacks: list[Callback] = [] if trainer is None else trainer.callbacks  # type: ignore[attr-defined]
        found = [type(callback).__name__ for callback in callbacks if isinstance(callback, WeightAveraging)]
        if found and self.option is not None:
            raise ArgumentError(
                f"feature_matching: {found[0]} leaves the projectors out of its checkpoints, so that training could "
                "not be resumed. Leave one of them out."
            )

    def take_saved(self, checkpoint: dict[str, Any], device: torch.device) -> None:
        """As many projectors as a checkpoint has weights of, for its weights to be loaded into.

        Without the option there are none, and the checkpoint loses their weights: only training needs them.
        """
        state: dict[str, Any] = checkpoint.get("state_dict", {})
        saved = [name for name in state if name.startswith(_PREFIX)]
        if self.option is None:
            for name in saved:
                del state[name]
        self._take_projectors(len({name.split(".")[1] for name in saved}), device)

    def check_resumed(self, checkpoint: Mapping[str, Any], saved: Sequence[str], own: Sequence[str]) -> None:
        """Check that a checkpoint's projectors are those of the run that resumes from it.

        Args:
            checkpoint: As it was saved.
            saved: Hash of each teacher of the checkpoint, in their order.
            own: The same of the run.

        Raises:
            TeacherError: If they are not; says what to change.
        """
        state: Mapping[str, Any] = checkpoint.get("state_dict", {})
        theirs = {name: tuple(value.shape) for name, value in state.items() if name.startswith(_PREFIX)}
        ours = {_PREFIX + name: tuple(value.shape) for name, value in self.projectors.state_dict().items()}
        if theirs != ours:
            raise TeacherError(
                f"feature_matching: the checkpoint's run has the projectors {_weights_in(theirs)}, this one "
                f"{_weights_in(ours)}. Give it as that run had it, or start a new run."
            )
        if ours and list(saved) != list(own):
            raise TeacherError(
                "feature_matching: the checkpoint's projectors belong to the same teachers in another order. Name "
                "their epochs in that order with choice=, or start a new run."
            )

    @contextmanager
    def catch(
        self, student: nn.Module, teachers: TeacherEnsemble | None, which: Sequence[int]
    ) -> Iterator[StepFeatures]:
        """Catch the layers' outputs of the forward passes inside the ``with`` block.

        The features are copies: as the layer gave them, also where the next one works in place, and the teachers' fit
        for a loss although these run in inference mode.

        Args:
            student: The student.
            teachers: The teachers.
            which: Places of those that run; where nobody does, nothing is caught.

        Raises:
            ArgumentError: At the end of the block, if a layer did not run or gave no tensor.
        """
        caught, option = StepFeatures(), self.option
        if option is None or not which:
            yield caught
            return
        assert teachers is not None

        def catch_student(_: nn.Module, __: Any, output: Any) -> None:
            caught.student = _copied(output, "student", option.student_layer)

        def catch_teacher(place: int, output: Any) -> None:
            with torch.inference_mode(False):
                caught.teachers[place] = _copied(output, "teacher", option.teacher_layer)

        with ExitStack() as hooks:
            layer = student.get_submodule(option.student_layer)
            hooks.callback(layer.register_forward_hook(catch_student).remove)
            for place in which:
                layer = teachers.members[place].get_submodule(option.teacher_layer)
                hook = layer.register_forward_hook(lambda _, __, output, place=place: catch_teacher(place, output))
                hooks.callback(hook.remove)
            yield caught
        if caught.student is None:
            raise _never_ran("student", option.student_layer)
        if len(caught.teachers) < len(which):
            raise _never_ran("teacher", option.teacher_layer)

    def term(self, features: StepFeatures, weights: Tensor | None) -> tuple[Tensor | None, Tensor | float | None]:
        """The weighted mean of the losses with each teacher that ran, and what is added to the step's loss.

        The second is ``weight`` times the first, and zero made of the other teachers' projectors, since DDP waits for
        the gradients of all parameters.

        Args:
            features: Of one step.
            weights: Of all teachers, shape (M,), 0 or more, divided by the sum of those that ran; None: the same for
                all.

        Returns:
            Shape () each; the first is None where no teacher ran, both where nothing is matched.

        Raises:
            ArgumentError: If the features do not have the shapes that the option says.
        """
        if self.option is None:
            return None, None
        places = list(features.teachers)
        self._matched.update(places)
        others = [projector for place, projector in enumerate(self.projectors) if place not in features.teachers]
        rest = sum((0.0 * parameter.sum() for other in others for parameter in other.parameters()), 0.0)
        if not places:
            return None, rest
        losses = torch.stack([self.projectors[place](features.student, features.teachers[place]) for place in places])
        mean = (losses * normalised_weights(None if weights is None else weights[places], losses)).sum()
        return mean, self.option.weight * mean + rest

    def drop_gradients_of_others(self) -> None:
        """Leave the optimiser nothing for them, so that neither weight decay nor momentum moves them.

        Call it ahead of each optimiser step.
        """
        for place, projector in enumerate(self.projectors):
            if place not in self._matched:
                projector.zero_grad(set_to_none=True)
        self._matched.clear()

    def _take_projectors(self, count: int, device: torch.device) -> None:
        while len(self.projectors):
            del self.projectors[-1]
        if self.option is not None:
            self.projectors.extend(make_projectors(self.option, count).to(device))


def _weights_in(shapes: Mapping[str, tuple[int, ...]]) -> str:
    found = [f"{name} {list(shape)}" for name, shape in shapes.items() if name.endswith(".weight")]
    return ", ".join(found) or "none"


def _copied(output: Any, who: str, layer: str) -> Tensor:
    if not isinstance(output, Tensor):
        raise ArgumentError(
            f"feature_matching.{who}_layer={layer!r} gives {describe(output)}; name a layer that gives one tensor."
        )
    return output.clone()


def _never_ran(who: str, layer: str) -> ArgumentError:
    return ArgumentError(
        f"feature_matching.{who}_layer={layer!r} is not called in the {who}'s forward pass, or only inside compiled "
        "code. Name a layer that is, and compile nothing around it."
    )
