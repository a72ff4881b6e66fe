#!/usr/bin/env bash
# jaxtyping 0.3.11 with beartype 0.23.1, torch 2.14.1: where annotations are strings (from __future__ import
# annotations), a shape whose name can't be looked up is no error and no warning: it is not checked any more.
#
#   jaxtyped: misspelt result, given a str: accepted
#   jaxtyped: misspelt argument, given a str: accepted
#   jaxtyped: as it should be, a result of another length: TypeCheckError
#   beartype alone: misspelt result, given a str: BeartypeCallHintReturnViolation
#   beartype alone: misspelt argument, given a str: BeartypeCallHintParamViolation
#
# A good guess is that a decorator which checks shapes fails on an annotation that it can't read, by NameError if by
# nothing else: beartype, which jaxtyping is told to check with, stumbles over the very same names. But jaxtyping looks
# annotations up itself before it hands them on, and puts Any in place of one that it can't. So a name that is imported
# under TYPE_CHECKING only, or lost its import in a clean-up, leaves a function that looks checked and is not, and tests
# that only call it rightly stay green. Have a static checker read the same annotations, or import what they name.
#
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6 jaxtyping==0.3.11 beartype==0.23.1
cat > "$folder/shapes.py" <<'PY'
from __future__ import annotations

import torch
from beartype import beartype
from jaxtyping import Float, jaxtyped
from torch import Tensor


def make(checked):
    @checked
    def misspelt_result(costs: Float[Tensor, " N"]) -> Flaot[Tensor, " N"]:
        return "no tensor"

    @checked
    def misspelt_argument(costs: Flaot[Tensor, " N"]) -> Float[Tensor, " N"]:
        return torch.ones(3)

    @checked
    def right(costs: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        return torch.ones(9)

    return (misspelt_result, torch.ones(3)), (misspelt_argument, "no tensor"), (right, torch.ones(3))


def said(function, argument):
    try:
        function(argument)
    except Exception as error:
        return type(error).__name__
    return "accepted"


words = ("misspelt result, given a str", "misspelt argument, given a str", "as it should be, a result of another length")
found = {}
for name, checked in (("jaxtyped", jaxtyped(typechecker=beartype)), ("beartype alone", beartype)):
    found[name] = [said(*pair) for pair in make(checked)]
    for what, answer in zip(words, found[name]):
        print(f"{name}: {what}: {answer}")
if found["jaxtyped"] != ["accepted", "accepted", "TypeCheckError"]:
    raise SystemExit("jaxtyping does otherwise now")
assert found["beartype alone"][:2] == ["BeartypeCallHintReturnViolation", "BeartypeCallHintParamViolation"]
PY
"$folder/venv/bin/python" "$folder/shapes.py"
