#!/usr/bin/env bash
# safetensors 0.8.0, torch 2.14.1: safetensors.torch.load(bytes) returns a state dict whose order changes from call to
# call on the same bytes; load_file() returns that of the file each time.
#
#   20 loads of 12 tensors: by load() 20 orders, by load_file() 1
#
# Python's dicts keep their order and the file has one (its header, by offset), so a good guess is that what is loaded
# has it too, and always the same: an average that is summed over values(), a hash over items(), a flat vector for an
# optimiser or a seed drawn per tensor is then the same in each run. By load() none of these is: Rust gives the bytes'
# tensors from a hash map with a random seed. Nothing raises, and load_state_dict(), which goes by name, hides it.
# Sort by name, or write a file and use load_file().
#
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 safetensors==0.8.0 numpy==2.4.6
"$folder/venv/bin/python" - "$folder" <<'PY'
import sys
from pathlib import Path

import torch
from safetensors.torch import load, load_file, save_file

path = Path(sys.argv[1]) / "a.safetensors"
save_file({f"layers.{number}.weight": torch.zeros(2) for number in range(12)}, path)
data = path.read_bytes()
by_bytes = {tuple(load(data)) for _ in range(20)}
by_file = {tuple(load_file(path)) for _ in range(20)}
print(f"20 loads of 12 tensors: by load() {len(by_bytes)} orders, by load_file() {len(by_file)}")
if len(by_bytes) == 1:
    raise SystemExit("load() keeps one order now")
assert len(by_file) == 1 and {tuple(sorted(order)) for order in by_bytes} == {tuple(sorted(load_file(path)))}
PY
