"""What brings each teacher's logits to the scale of the last snapshot's, by the temperatures of the selection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_ckptkd.errors import TeacherError
from lightning_ckptkd.information.temperature import COLDEST, HOTTEST
from lightning_ckptkd.losses.scale import AUTO, FITTED
from lightning_ckptkd.rank_zero import rank_zero_info
from lightning_ckptkd.snapshots import SELECTION_NAME, Selection, Snapshot, SnapshotStore, SoupSnapshot

_MOST = 5.0  # times larger or smaller that a soup's logits are made unasked; what was measured went up to 4.4
_NEAR = 1.001  # an end of the range of temperatures within which there is no best one
_INSTEAD = "give scale='standardised' or a number"


def scales_of(store: SnapshotStore, chosen: Sequence[Snapshot], scale: str) -> list[float]:
    """What each teacher's logits are multiplied by.

    Args:
        store: The harvest.
        chosen: Teachers from it.
        scale: ``fitted``, or ``auto``: a soup's as by ``fitted``, where its temperature is known and that makes its
            logits at most five times larger or smaller; else 1.

    Raises:
        SnapshotError: As :func:`fitted_scales`, for ``fitted``.
        TeacherError: Likewise.
    """
    if scale != AUTO:
        return fitted_scales(store, chosen)
    as_they_are = [1.0] * len(chosen)
    if not any(isinstance(snapshot, SoupSnapshot) for snapshot in chosen):
        return as_they_are
    if Selection.read(store).soup.get("temperature") is None:  # of numbers, say
        return as_they_are
    try:
        found = fitted_scales(store, chosen)
    except TeacherError as error:
        rank_zero_info(f"The soup teaches with its logits as they are. {error}")
        return as_they_are
    farthest = max(found, key=lambda factor: max(factor, 1 / factor))
    if not 1 / _MOST <= farthest <= _MOST:
        rank_zero_info(
            f"The soup teaches with its logits as they are: to the scale of the last snapshot they would be "
            f"{farthest:.3g} times as large, and at most {_MOST:g} times larger or smaller was tried. "
            "scale='fitted' does it all the same."
        )
        return as_they_are
    return found


def fitted_scales(store: SnapshotStore, chosen: Sequence[Snapshot]) -> list[float]:
    """The last snapshot's fitted temperature over each teacher's.

    Logits times that have the last snapshot's fitted temperature, so that at one T all of them teach as strongly as it.

    Args:
        store: The harvest.
        chosen: Teachers from it.

    Raises:
        SnapshotError: If ``selection.json`` is missing or can't be trusted.
        TeacherError: If it does not tell a temperature, or the one is at an end of the range that is looked at.
    """
    selection = Selection.read(store)
    known = {one.sha256: one.temperature for one in selection.candidates}
    if selection.soup.get("taken"):
        known[selection.soup["sha256"]] = selection.soup.get("temperature")
    last = next((one for one in reversed(selection.candidates) if one.temperature is not None), None)
    reference = None if last is None else last.temperature
    found = [known.get(snapshot.sha256) for snapshot in chosen]
    lacking = [one.label for one, temperature in zip(chosen, found, strict=True) if not temperature or not reference]
    if lacking or not reference:
        raise TeacherError(
            f"scale='fitted' needs the fitted temperatures of {', '.join(lacking)}, and {SELECTION_NAME} of "
            f"{store.folder} has none. Select again with a rule that reads the logits, as `ckptkd select` does by "
            f"default, or {_INSTEAD}."
        )
    temperatures = [temperature for temperature in found if temperature]
    if any(not COLDEST * _NEAR < temperature < HOTTEST / _NEAR for temperature in (reference, *temperatures)):
        raise TeacherError(
            f"scale='fitted': of {store.folder} the temperatures {temperatures} and {reference} (of the last snapshot) "
            "are fitted to a probe set on which the best one is not to be found (each label is foretold, or nothing). "
            f"Select again with a larger probe set, or {_INSTEAD}."
        )
    return [reference / temperature for temperature in temperatures]


def as_tensor(scales: Sequence[float], scale: str | None) -> Tensor | None:
    """Scales of M teachers as a loss takes them, shape (M,); None where all are 1, unless it is to be ``fitted``."""
    return torch.tensor(scales) if scale == FITTED or any(factor != 1 for factor in scales) else None


def resumed_scales(saved: Mapping[str, float], own: Mapping[str, float]) -> list[float]:
    """What each teacher's logits are multiplied by in a training that goes on: what they were before.

    Args:
        saved: Of the checkpoint, by the teachers' SHA-256.
        own: By the harvest's selection as it is now, which may have been made anew.
    """
    if saved != own:
        before, now = (", ".join(f"{scale:.3g}" for scale in scales.values()) for scales in (saved, own))
        rank_zero_info(
            f"The teachers' logits stay at the scale that the training had ({before}); by the harvest's selection, "
            f"which was made anew, it would be {now}."
        )
    return [saved.get(sha256, scale) for sha256, scale in own.items()]
