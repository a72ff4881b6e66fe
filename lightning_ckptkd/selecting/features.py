"""F of a snapshot: the features of a layer for every probe sample, and the logits with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.snapshots.weights import get_submodule
from lightning_ckptkd.tasks.legacy import describe_output, get_logits


@dataclass(frozen=True)
class Features:
    """What one snapshot makes of the probe samples.

    Attributes:
        pooled: A vector for each sample, shape (N, D): a layer's output, or the logits where no layer was asked for.
        spatial: A feature map for each sample, shape (N, C, H, W); None where none was asked for.
        logits: Shape (N, K); None where the module gives no (N, K) tensor.
    """

    pooled: Tensor
    spatial: Tensor | None
    logits: Tensor | None


@dataclass(frozen=True)
class Layers:
    """Where F is read.

    Attributes:
        pooled: Name of the module that gives the vectors; None where the logits are all that is needed.
        pooled_is_input: Whether its input is meant rather than its output.
        spatial: Name of the module whose output is the feature map; None where none is needed.
        gives_logits: Whether the network's output is taken for logits.
    """

    pooled: str | None
    pooled_is_input: bool
    spatial: str | None
    gives_logits: bool = True


def find_layers(
    module: nn.Module,
    inputs: Tensor,
    layer: str | None,
    *,
    need_spatial: bool,
    need_layer: bool = True,
    whole: bool = True,
) -> Layers:
    """Decide where F is read, by one forward pass.

    Args:
        module: The network.
        inputs: A few samples, shape (N, ...), on the module's device.
        layer: Name of a module whose output is F. None takes the input of the last ``nn.Linear`` that runs and,
            for the feature map, the last output of shape (N, C, H, W) with more than one position.
        need_spatial: Whether a feature map is needed.
        need_layer: Whether the vectors of a layer are needed, and not the logits alone.
        whole: Whether the module is all that was trained. The output of a part of it is taken for logits only if it
            is that of the last ``nn.Linear`` itself: a backbone's features are no logits.

    Raises:
        ArgumentError: If the layer does not exist or none can be found.
    """
    ran: list[tuple[str, nn.Module, Any]] = []
    if layer is not None:
        get_submodule(module, layer, "layer")

    def note(name: str, child: nn.Module, output: Any) -> None:
        ran.append((name, child, output))

    with _hooks(module, note):
        result = _forward(module, inputs)
    spatial = layer
    if layer is None:
        maps = [name for name, _, output in ran if name and _is_map(output)]
        spatial = maps[-1] if maps else None
    if need_spatial and not any(name == spatial and _is_map(output) for name, _, output in ran):
        raise ArgumentError(
            f"layer={layer!r}: the convolutional decoder needs a feature map (N, C, H, W), and "
            f"{type(module).__name__} gives none there. Name a layer that does, or use input_estimator='gaussian'."
        )
    linear = [(name, output) for name, child, output in ran if isinstance(child, nn.Linear)]
    gives_logits = _is_matrix(result) and (whole or bool(linear and linear[-1][1] is result))
    if layer is not None:
        return Layers(layer, False, layer if need_spatial else None, gives_logits)
    if not need_layer:
        return Layers(None, False, spatial if need_spatial else None, gives_logits)
    if not linear:
        names = [name for name, _, _ in ran if name]
        raise ArgumentError(
            f"layer=None: no nn.Linear runs in {type(module).__name__}, so there is no last linear layer to read F "
            f"before. Name the layer whose output is F with layer=, such as one of {names[-5:]}."
        )
    return Layers(linear[-1][0], True, spatial if need_spatial else None, gives_logits)


def extract_features(
    module: nn.Module,
    inputs: Tensor,
    layers: Layers,
    *,
    batch_size: int,
    logits_key: str | int | None,
    need_logits: bool = True,
) -> Features:
    """Run a network over the probe samples and collect F.

    Args:
        module: The network, in eval mode.
        inputs: X, shape (N, ...), on any device.
        layers: Where F is read.
        batch_size: Samples a forward pass.
        logits_key: Where the logits are in the network's output.
        need_logits: Whether it is an error that the network returns no tensor and ``logits_key`` is None.

    Returns:
        Everything on the CPU. Feature maps and token sequences are averaged over positions for ``pooled``.

    Raises:
        ArgumentError: If the layer's output is no tensor or of a shape that can't be pooled, or there is neither a
            layer nor logits.
    """
    parameter = next(iter(module.parameters()), torch.empty(0))
    pooled: list[Tensor] = []
    spatial: list[Tensor] = []
    logits: list[Tensor] = []
    caught: dict[str, Any] = {}

    def catch_pooled(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        caught["pooled"] = args[0] if layers.pooled_is_input else output

    def catch_spatial(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        caught["spatial"] = output

    handles = []
    if layers.pooled is not None:
        handles.append(module.get_submodule(layers.pooled).register_forward_hook(catch_pooled))
    if layers.spatial is not None:
        handles.append(module.get_submodule(layers.spatial).register_forward_hook(catch_spatial))
    try:
        for batch in torch.split(inputs, batch_size):
            batch = batch.to(parameter.device)
            output = _forward(module, batch.to(parameter.dtype) if batch.is_floating_point() else batch)
            if layers.pooled is not None:
                pooled.append(_pool(caught["pooled"], layers.pooled).float().cpu())
            if layers.spatial is not None:
                spatial.append(caught["spatial"].float().cpu())
            if logits_key is not None or layers.gives_logits or (need_logits and not isinstance(output, Tensor)):
                logits.append(get_logits(output, logits_key, type(module).__name__).float().cpu())
    finally:
        for handle in handles:
            handle.remove()
    found = torch.cat(logits) if logits else None
    vectors = torch.cat(pooled) if pooled else found
    if vectors is None:
        raise ArgumentError(
            f"{type(module).__name__} gives no logits, shape (N, K), to take for F. Harvest the whole classifier, "
            "say with logits_key where its output holds them, or use rule='mi' with feature='layer' and "
            "label_estimator='logistic'."
        )
    return Features(vectors, torch.cat(spatial) if spatial else None, found)


def choose_feature(features: Features, feature: str, temperature: float) -> Features:
    """The features with F being what the user chose.

    Args:
        features: With logits, unless ``feature`` is ``layer``.
        feature: ``layer``, ``logits``, or ``probabilities``, the softmax of logits / temperature: what a student sees.
        temperature: T > 0.
    """
    if feature == "layer" or features.logits is None:
        return features
    logits = features.logits
    return replace(features, pooled=logits if feature == "logits" else (logits.double() / temperature).softmax(1))


def find_unusable(features: Features) -> str | None:
    """Why features can't be scored: not finite, or the same for each sample; None where they can."""
    parts = [part for part in (features.pooled, features.spatial, features.logits) if part is not None]
    if not all(bool(torch.isfinite(part).all()) for part in parts):
        return "its features or logits on the probe set are not finite"
    if bool((features.pooled == features.pooled[:1]).all()):
        return "its features are the same for each probe sample"
    return None


@contextmanager
def _hooks(module: nn.Module, note: Any) -> Iterator[None]:
    handles = [
        child.register_forward_hook(lambda child, _, output, name=name: note(name, child, output))
        for name, child in module.named_modules()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _forward(module: nn.Module, inputs: Tensor) -> Any:
    with torch.no_grad():
        try:
            return module(inputs)
        except NotImplementedError as error:
            raise ArgumentError(
                f"{type(module).__name__} has no forward(): {error}. Give it one that returns the logits, or harvest "
                "the network alone with CheckpointHarvester(submodule='...')."
            ) from None


def _is_map(output: Any) -> bool:
    return isinstance(output, Tensor) and output.dim() == 4 and output.shape[-2] * output.shape[-1] > 1


def _is_matrix(output: Any) -> bool:
    return isinstance(output, Tensor) and output.dim() == 2


def _pool(features: Any, layer: str) -> Tensor:
    if not isinstance(features, Tensor):
        raise ArgumentError(f"layer={layer!r} gives {describe_output(features)}; name a layer that gives one tensor.")
    if features.dim() == 4:
        return features.mean((2, 3))
    if features.dim() == 3:
        return features.mean(1)
    if features.dim() == 2:
        return features
    raise ArgumentError(f"layer={layer!r} gives the shape {tuple(features.shape)}; 2 to 4 dimensions can be used.")
