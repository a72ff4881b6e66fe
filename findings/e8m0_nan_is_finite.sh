#!/usr/bin/env bash
# torch 2.14.1: torch.isfinite says that a float8_e8m0fnu NaN is finite, while torch.isnan says that it is NaN.
#
# float8_e8m0fnu (scales of the MX formats) has no infinity and one NaN, the bits 0xFF. Whoever looks for broken weights
# with torch.isfinite(tensor).all(), as one does for every other floating-point type, finds none in such a tensor:
#
#   nan as float32: tensor([nan, 1.])
#   isfinite: [True, True]
#   isnan: [True, False]
#
# isfinite is commonly taken for "neither NaN nor infinite", and isfinite and isnan are then never both true. They are
# here. Compare the bits with 0xFF, or convert to float32 first.
#
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch

values = torch.tensor([0xFF, 0x7F], dtype=torch.uint8).view(torch.float8_e8m0fnu)
finite, nan = torch.isfinite(values).tolist(), torch.isnan(values).tolist()
print("nan as float32:", values.float())
print("isfinite:", finite)
print("isnan:", nan)
assert nan == [True, False]
assert finite == [True, True], "isfinite has changed"
assert torch.isfinite(values.float()).tolist() == [False, True]
PY
