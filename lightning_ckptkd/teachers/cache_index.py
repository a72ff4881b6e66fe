"""``cache.json``: what the logits of a cache depend on, and how many items a chunk has."""

from __future__ import annotations

from typing import Any

from lightning_ckptkd.errors import CacheError, SnapshotError
from lightning_ckptkd.snapshots.fields import Fields
from lightning_ckptkd.snapshots.folders import LocalFolder
from lightning_ckptkd.teachers.cache_key import CacheKey

INDEX_NAME = "cache.json"
_FORMAT, _VERSION = "lightning_ckptkd.logit_cache", 1


def index_document(key: CacheKey, chunk_items: int) -> dict[str, Any]:
    """The index as plain JSON."""
    return {"format": _FORMAT, "version": _VERSION, "chunk_items": chunk_items, "key": key.document()}


def read_index(folder: LocalFolder, key: CacheKey) -> int:
    """Items a chunk, of a cache that must be for this key.

    Raises:
        CacheError: If the index can't be read, or says another key.
    """
    try:
        fields = Fields(folder.read_json(INDEX_NAME), folder / INDEX_NAME)
        fields.header(_FORMAT, _VERSION)
        chunk_items, cached = fields.natural("chunk_items"), fields.plain("key")
    except SnapshotError as error:
        raise CacheError(
            f"The index of a cache of logits can't be used: {error} Delete the folder {folder}, and it is filled "
            "again, or give another."
        ) from error
    differences = key.differences(cached)
    if differences:
        raise CacheError(
            f"{folder} holds the logits of something else ({'; '.join(differences)}). Nothing was changed there. Give "
            "another folder for this cache, or delete that one."
        )
    if chunk_items < 1:
        raise CacheError(f"{folder / INDEX_NAME} says chunks of {chunk_items} items. Delete the folder {folder}.")
    return chunk_items
