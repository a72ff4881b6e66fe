"""Committing a soup: the mean of snapshots becomes a file of the harvest, beside the snapshots and not among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_ckptkd.errors import SnapshotError
from lightning_ckptkd.snapshots.fields import json_safe
from lightning_ckptkd.snapshots.folders import Folder
from lightning_ckptkd.snapshots.host_copy import HostCopy
from lightning_ckptkd.snapshots.layout import plan_layout
from lightning_ckptkd.snapshots.manifest import Snapshot, SoupMember, SoupSnapshot
from lightning_ckptkd.snapshots.store import SnapshotStore


def commit_soup(
    folder: str | Path | Folder,
    weights: Mapping[str, Tensor],
    members: Sequence[Snapshot],
    recipe: Mapping[str, Any],
) -> SoupSnapshot:
    """Add the mean of some snapshots to their harvest; one that is there already is not written again.

    The harvest's lock is held meanwhile, so that no training writes at the same time.

    Args:
        folder: The harvest's.
        weights: The mean.
        members: The snapshots that it is made of, the best first.
        recipe: How it was made, as plain JSON.

    Raises:
        SnapshotError: If a member is not in the harvest, a training writes into it, or a file can't be written.
    """
    run_id = SnapshotStore.open(folder).manifest.run_id
    with _opened(folder, run_id) as store:
        known = {snapshot.sha256 for snapshot in store.snapshots}
        lost = next((member.file for member in members if member.sha256 not in known), None)
        if lost is not None:
            raise SnapshotError(f"{store.folder} does not hold {lost} any more, so a soup with it was not kept.")
        named = tuple(SoupMember(one.file, one.sha256, one.epoch, one.global_step) for one in members)
        plain = json_safe(dict(recipe))
        copy = HostCopy()
        copy.reserve(plan_layout(weights))
        copy.fill(weights)
        parts, sha256 = copy.parts(), copy.sha256()
        for soup in store.soups:
            if (soup.sha256 == sha256 or (soup.members, soup.recipe) == (named, plain)) and _is_intact(store, soup):
                return soup
        soup = SoupSnapshot(
            epoch=members[0].epoch,
            global_step=members[0].global_step,
            file=f"soup-{store.manifest.tag}-{sha256[:8]}.safetensors",
            sha256=sha256,
            size=sum(len(part) for part in parts),
            members=named,
            recipe=plain,
        )
        store.add_soup(soup, parts)
        return soup


def _is_intact(store: SnapshotStore, soup: SoupSnapshot) -> bool:
    try:
        store.verify(soup)
    except SnapshotError:
        return False
    return True


def _opened(folder: str | Path | Folder, run_id: str) -> SnapshotStore:
    try:
        return SnapshotStore.create(folder, run_id, {}, holder=f"{run_id}, a soup of it")
    except SnapshotError as error:
        raise SnapshotError(f"the harvest can't take a soup now, select again when it can: {error}") from error
