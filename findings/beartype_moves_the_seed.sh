#!/usr/bin/env bash
# beartype 0.23.1: a checked call with a list or tuple draws from Python's global generator, so that a seeded run draws
# other samples, augmentations and splits once its functions are checked.
#
#   collate unchecked: order of the second epoch [1, 4, 0, 3, 2, 5, 6, 7]
#   collate checked:   order of the second epoch [7, 4, 3, 1, 6, 5, 2, 0]
#   dict[str, int]: generator untouched; list[int], tuple[int, ...], Sequence[int]: moved, even for one item
#
# A good guess is that a check looks and changes nothing; that beartype looks at one item at random is documented, and
# one would take a generator of its own for that. It is the module's: random.seed() before, and the stream differs after
# each call, by how many containers a function takes. torch's and NumPy's generators are not touched, so a run may be
# reproducible for a long time, until a transform or sampler that shuffles with random comes in. With the checks on in
# tests only, what the tests train on is not what users train on. Keep random.getstate() around checked calls, or draw
# from a random.Random of one's own.
#
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet beartype==0.23.1
"$folder/venv/bin/python" - <<'PY'
import random
from collections.abc import Sequence

from beartype import beartype


def collate(samples: list[int]) -> int:
    return sum(samples)


def order_of_second_epoch(collate) -> list[int]:
    random.seed(0)
    order = list(range(8))
    for _ in range(2):
        random.shuffle(order)
        for start in range(0, 8, 4):
            collate(order[start : start + 4])
    return order


plain, checked = order_of_second_epoch(collate), order_of_second_epoch(beartype(collate))
print(f"collate unchecked: order of the second epoch {plain}")
print(f"collate checked:   order of the second epoch {checked}")

moved = {}
for kind, value in ((dict[str, int], {"a": 1}), (list[int], [1]), (tuple[int, ...], (1,)), (Sequence[int], [1])):
    def look(value):
        return None

    look.__annotations__["value"] = kind
    random.seed(0)
    before = random.getstate()
    beartype(look)(value)
    moved[str(kind)] = random.getstate() != before
print(moved)
if plain == checked or list(moved.values()) != [False, True, True, True]:
    raise SystemExit("beartype does otherwise now")
assert order_of_second_epoch(collate) == plain
PY
