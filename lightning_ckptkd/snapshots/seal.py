"""Seals: a hash in a JSON object over all that it says, so that what was edited since is known.

A seal is no signature: whoever knows the format can make another. It tells of a hand edit, a merge, a line that was
lost. What a reader can't do with, it still has to check field by field.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "seal"


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The object with its seal.

    Args:
        document: Of what :mod:`json` writes.
    """
    content = {name: value for name, value in document.items() if name != SEAL}
    return {**content, SEAL: _hash(json.loads(json.dumps(content)))}


def is_sealed(document: Any) -> bool:
    """Whether what was read of a JSON file is an object that says what it said when it was sealed."""
    if not isinstance(document, dict):
        return False
    try:
        return bool(document.get(SEAL) == _hash({name: value for name, value in document.items() if name != SEAL}))
    except RecursionError:  # deeper than what is written
        return False


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
