from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from lightning_ckptkd.snapshots.seal import is_sealed, sealed

DOCUMENT: dict[str, Any] = {
    "name": "ä\ud800",
    "terms": [{"value": 0.1 + 0.2, "replicates": (1.5, 1e-300)}],
    "settings": {2: None, "on": True, "inner": {"seed": 2**60}},
}


def read_back(document: dict[str, Any]) -> Any:
    return json.loads(json.dumps(document, indent=1))


def test_what_was_written_holds() -> None:
    written = sealed(DOCUMENT)
    assert is_sealed(read_back(written))
    assert is_sealed(read_back(dict(reversed(written.items())))), "the order of names says nothing"
    assert sealed(written) == written


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found["terms"][0].update(value=0.3),
        lambda found: found["terms"][0]["replicates"].pop(),
        lambda found: found["terms"].append(found["terms"][0]),
        lambda found: found["settings"].update(on=1),
        lambda found: found["settings"]["inner"].update(seed=2**60 + 1),
        lambda found: found.update(added=None),
        lambda found: found.pop("name"),
        lambda found: found.pop("seal"),
        lambda found: found.update(seal=None),
    ],
)
def test_any_change_is_seen(change: Any) -> None:
    found = read_back(sealed(DOCUMENT))
    changed = copy.deepcopy(found)
    change(changed)
    assert is_sealed(found)
    assert not is_sealed(changed)


def test_what_is_no_object() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for document in (None, [], "seal", 1, {}, {"seal": 1}, {"seal": "", "deep": deep}):
        assert not is_sealed(document)
