#!/usr/bin/env bash
# jsonargparse 4.53.0 (what Lightning's CLI parses with), torch 2.14.1: an option annotated Callable[[Tensor], Tensor]
# refuses torch.relu.
#
#   Callable[[Tensor], Tensor]: torch.nn.functional.relu taken, torch.relu refused, numpy.tanh refused
#   Callable[[int], int]:       torch.nn.functional.relu taken, torch.relu taken, numpy.tanh taken
#
# An activation, a loss or a transform is such an option, and the annotation is the usual one, so a good guess is that
# any function may be named by its import path: that holds where the annotation returns int, whatever the function
# returns. But a return type that is a class makes the option one for a factory of that class, and then only what is
# annotated to return it is taken. torch.relu and most of torch's own functions are built in, numpy's are ufuncs: none
# has an annotation, nor have the functions of most users, while those of torch.nn.functional mostly have. Annotate such
# an option Callable[[Tensor], Any].
#
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6 "jsonargparse[signatures]==4.53.0"
"$folder/venv/bin/python" - <<'PY'
from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor

NAMES = ("torch.nn.functional.relu", "torch.relu", "numpy.tanh")


def tried(hint: object, name: str) -> str:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--function", type=hint)
    try:
        return "taken" if callable(parser.parse_args([f"--function={name}"]).function) else "changed"
    except ArgumentError:
        return "refused"


found = {}
for words, hint in (
    ("Callable[[Tensor], Tensor]", Callable[[Tensor], Tensor]),
    ("Callable[[int], int]", Callable[[int], int]),
    ("Callable[[Tensor], Any]", Callable[[Tensor], Any]),
):
    found[words] = [tried(hint, name) for name in NAMES]
    print(words, ", ".join(f"{name} {what}" for name, what in zip(NAMES, found[words])))
if found["Callable[[Tensor], Tensor]"] != ["taken", "refused", "refused"]:
    raise SystemExit("a function that returns a class is taken otherwise now")
assert found["Callable[[int], int]"] == found["Callable[[Tensor], Any]"] == ["taken"] * 3
PY
