"""What teachers cost a training step: ``python -m benchmarks.distillation``, as ratios that are measured in one run.

Four teachers (ResNet-14 of width 16) and a student (ResNet-8 of width 16) on batches of 128 images of 28 x 28 pixels.
The plain loop is what published code does: each teacher in turn, in float32, without gradients. Give it the machine
for itself. ``--device cuda`` runs it on a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_ckptkd.report import format_table
from lightning_ckptkd.teachers import TeacherEnsemble, calibrate
from lightning_ckptkd.zoo import CIFARResNet

RESULTS = Path(__file__).parent / "results" / "distillation.json"
TEACHERS, BATCH_SIZE = 4, 128
WAYS: dict[str, dict[str, Any]] = {"exact": {}, "compiled": {"acceleration": "compile"}, "bf16": {"bf16": True}}
TARGETS = {"exact": 0.65, "bf16": 0.5}


def main() -> None:
    """Time everything in turn, several times."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads; None leaves them as they are")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    torch.manual_seed(0)
    inputs = torch.randn(BATCH_SIZE, 1, 28, 28, device=device)
    labels = torch.randint(10, (BATCH_SIZE,), device=device)
    members = [trained(CIFARResNet(14, 10, 16, 1)) for _ in range(TEACHERS)]
    student = CIFARResNet(8, 10, 16, 1).to(device)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(student(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    plain = ensemble(members, device)

    @torch.no_grad()
    def loop() -> Tensor:
        return torch.stack([member(inputs) for member in plain.members])

    runs: dict[str, Callable[[], object]] = {"student's step": step, "plain loop": loop}
    notes = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table tells which ways were not taken
        for name, how in WAYS.items():
            found = ensemble(members, device)
            calibration = calibrate(found, inputs, **how)
            difference = float((found(inputs) - loop()).abs().max() / loop().abs().max())
            ways = [way for way, on in vars(calibration.path).items() if on]
            notes[name] = f"{', '.join(ways)}; logits differ by {difference:.0e} of the largest"
            runs[name] = partial(found, inputs)
    seconds = measure(runs, options.rounds, device)
    ratios = {
        name: statistics.median(a / b for a, b in zip(seconds[name], seconds["plain loop"], strict=True))
        for name in notes
    }
    share = statistics.median(a / b for a, b in zip(seconds["plain loop"], seconds["student's step"], strict=True))
    rows = [["plain loop / student's step", f"{share:.2f}", "", ""]]
    for name, ratio in ratios.items():
        target = TARGETS.get(name)
        verdict = "" if target is None else f"<= {target}: {'met' if ratio <= target else 'MISSED'}"
        rows.append([f"{name} / plain loop", f"{ratio:.2f}", verdict, notes[name]])
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    table = format_table(["measured", "ratio", "target", f"on {machine}"], rows)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[machine] = {"table": table, "ratios": ratios, "loop_to_step": share, "seconds": seconds}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(table)


def ensemble(members: list[nn.Module], device: torch.device) -> TeacherEnsemble:
    """Copies of the teachers."""
    copies = [CIFARResNet(14, 10, 16, 1).to(device) for _ in members]
    for copy, member in zip(copies, members, strict=True):
        copy.load_state_dict(member.state_dict())
    return TeacherEnsemble(copies, [str(place) for place in range(len(copies))])


def trained(network: nn.Module) -> nn.Module:
    """BatchNorm's statistics as training leaves them, not the zeros and ones of a new network."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = 0.1 * torch.randn(module.num_features)
            module.running_var = 0.5 + torch.rand(module.num_features)
    return network.eval()


def measure(runs: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each, taken in turn, so that a machine that slows down slows all."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(1 if device.type == "cpu" else 50):
                run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
