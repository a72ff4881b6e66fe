"""Networks of one kind that run and train at once on the same batches: their weights are stacked."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn import functional as F
from typing_extensions import override

WAYS = ("vmap", "loop")


class NetworkStack:
    """S networks of one kind as one.

    Args:
        networks: They are copied.
        device: Where they run.
        bf16: Whether convolutions and linear layers compute in bfloat16, as under autocast; the weights stay float32.

    Attributes:
        way: ``vmap`` runs all at once, ``loop`` one after another; they give the same.
        parameters: Name to stacked parameter, shape (S, ...).
        buffers: Likewise.
    """

    def __init__(self, networks: Sequence[nn.Module], device: torch.device | str, bf16: bool = False) -> None:
        parameters, buffers = stack_module_state([copy.deepcopy(network) for network in networks])
        self.parameters = {name: value.detach().to(device).requires_grad_() for name, value in parameters.items()}
        self.buffers = {name: value.to(device) for name, value in buffers.items()}
        self.way = "vmap"
        self._skeleton = copy.deepcopy(networks[0]).to("meta")
        self._skeletons = {
            "loop": self._skeleton,
            "vmap": _with_float_norms(self._skeleton) if bf16 else self._skeleton,
        }
        self._bf16 = bf16
        self._rounded = {
            f"{name}.{part}"
            for name, module in self._skeleton.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear)
            for part, _ in module.named_parameters(recurse=False)
        }

    def __len__(self) -> int:
        return len(next(iter(self.parameters.values())))

    def __call__(self, images: Tensor, *, train: bool) -> Tensor:
        """Logits.

        Args:
            images: What all of them see, shape (N, C, H, W).
            train: Whether BatchNorm takes the batch's statistics, and keeps running ones.

        Returns:
            Shape (S, N, K), in the weights' type.
        """
        self._skeletons[self.way].train(train)
        images = images.to(torch.bfloat16) if self._bf16 else images
        if self.way == "vmap":
            run = torch.func.vmap(self._one, in_dims=(0, 0, None), randomness="error")
            return self._widened(run(self.parameters, self.buffers, images))
        weights, buffers = (
            {name: value.unbind(0) for name, value in kind.items()} for kind in (self.parameters, self.buffers)
        )
        logits = [self._one(_of(weights, place), _of(buffers, place), images) for place in range(len(self))]
        return self._widened(torch.stack(logits))

    def take_fastest_way(self, run: Callable[[], object], repeats: int = 3) -> dict[str, float]:
        """Keep the way in which a call takes the least time.

        Args:
            run: Calls the stack; it is called some times in each way.
            repeats: Of what is timed, after a first call.

        Returns:
            Seconds of a call in each way; infinity where it raised.
        """
        seconds = {}
        for self.way in WAYS:
            try:
                run()
                self._wait()
                start = time.perf_counter()
                for _ in range(repeats):
                    run()
                self._wait()
                seconds[self.way] = (time.perf_counter() - start) / repeats
            except (RuntimeError, NotImplementedError):  # of a kernel that this device lacks, or its memory
                seconds[self.way] = float("inf")
        self.way = min(seconds, key=lambda way: seconds[way])
        return seconds

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Stacked weights, to be saved."""
        return {
            "parameters": {name: value.detach() for name, value in self.parameters.items()},
            "buffers": self.buffers,
        }

    def load(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Take saved weights."""
        with torch.no_grad():
            for mine, theirs in ((self.parameters, state["parameters"]), (self.buffers, state["buffers"])):
                for name, value in mine.items():
                    value.copy_(theirs[name])

    def _one(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
        if self._bf16:
            parameters = {
                name: value.to(torch.bfloat16) if name in self._rounded else value for name, value in parameters.items()
            }
        logits: Tensor = functional_call(self._skeletons[self.way], (parameters, buffers), (images,))
        return logits

    def _widened(self, logits: Tensor) -> Tensor:
        return logits.float() if self._bf16 else logits

    def _wait(self) -> None:
        device = next(iter(self.parameters.values())).device
        if device.type == "cuda":
            torch.cuda.synchronize(device)


class _FloatNorm(nn.BatchNorm2d):
    """BatchNorm of bfloat16 by float32 weights, which vmap does not mix."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float()).to(input.dtype)


def _with_float_norms(network: nn.Module) -> nn.Module:
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = _FloatNorm
    return network


def _of(unbound: Mapping[str, Sequence[Tensor]], place: int) -> dict[str, Tensor]:
    return {name: values[place] for name, values in unbound.items()}


def stacked_loss(students: Tensor, teachers: Tensor, taught: Tensor, labels: Tensor, T: float, alpha: float) -> Tensor:
    """The paper's loss of each student: alpha * CE + (1 - alpha) * T^2 * KL, or CE alone.

    Args:
        students: Logits, shape (S, N, K).
        teachers: Mean logits of each student's teachers, shape (S, N, K).
        taught: Which students have teachers, shape (S,), bool.
        labels: Shape (N,).
        T: Temperature.
        alpha: Weight of the labels.

    Returns:
        Shape (S,), in nats.
    """
    count, samples = students.shape[:2]
    hard = F.cross_entropy(students.flatten(0, 1), labels.repeat(count), reduction="none").view(count, samples).mean(1)
    log_p, log_q = (F.log_softmax(logits / T, dim=-1) for logits in (teachers, students))
    soft = (log_p.exp() * (log_p - log_q)).sum(-1).mean(1) * T**2
    return torch.where(taught, alpha * hard + (1 - alpha) * soft, hard)


def mean_logits(teachers: Tensor, shares: Tensor) -> Tensor:
    """What each student's teachers say together.

    Args:
        teachers: Logits of all, shape (M, N, K).
        shares: What each counts for each student, shape (S, M); rows of no teacher are 0.

    Returns:
        Shape (S, N, K).
    """
    return torch.einsum("sm,mnk->snk", shares, teachers)


def accuracies(stack: NetworkStack, batches: Any) -> list[float]:
    """Of each network, as a share.

    Args:
        stack: The networks.
        batches: Images and labels, as in :meth:`.DeviceImages.batches`.
    """
    right, total = torch.zeros(len(stack)), 0
    with torch.no_grad():
        for images, labels in batches:
            right += (stack(images, train=False).argmax(-1) == labels).sum(1).cpu()
            total += len(labels)
    found: list[float] = (right / total).tolist()
    return found
