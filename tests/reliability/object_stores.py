"""What happens to harvests on a real S3 server: ``python -m tests.reliability.object_stores TRIALS COUNT ...``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from tests.reliability.object_faults import kill_trials, outage_trials
from tests.reliability.object_races import open_trials, start_trials

_TRIALS: dict[str, Callable[..., dict[str, Any]]] = {
    "starts": start_trials,
    "opens": open_trials,
    "kills": kill_trials,
    "outage": outage_trials,
    "short-outage": lambda count: outage_trials(count, 5.0),
}


def main(arguments: list[str]) -> None:
    """Run trials one after another and print what came of them as JSON."""
    results = {name: _TRIALS[name](int(count)) for name, count in zip(arguments[::2], arguments[1::2], strict=True)}
    print(json.dumps(results if len(results) > 1 else next(iter(results.values()))))


if __name__ == "__main__":
    main(sys.argv[1:])
