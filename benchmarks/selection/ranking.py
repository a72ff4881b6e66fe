"""What a selection costs: ``python -m benchmarks.selection``, as ratios that are measured in one run.

``cost``: ranking 30 snapshots with the default estimators, against the bare forward passes of those 30 over the same
probe set. ``ranks``: two processes of one thread each, against one process of one thread; beside it what two processes
need that halve the bare forward passes, which nothing that runs on this machine can beat. ``memory``: of the process
over 200 snapshots. Give it the machine for itself. ``--device cuda`` runs the first part on a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.rows import Row, make_table
from lightning_ckptkd import MISelector, SnapshotStore
from lightning_ckptkd.snapshots import Selection
from lightning_ckptkd.zoo import CIFARResNet

RESULTS = Path(__file__).parents[1] / "results" / "selection.json"
SNAPSHOTS, RANK_SNAPSHOTS, MANY, BATCH_SIZE, SIDE = 30, 10, 200, 256, 28
PARTS = ("cost", "ranks", "memory")
COST_TARGET, RANKS_TARGET, MEMORY_TARGET = 1.25, 0.6, 0.1


def main() -> None:
    """Measure everything, or be one rank of a measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, help="the other results are kept")
    parser.add_argument("--harvest", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.harvest is not None:
        measured = (
            resident_memory(options.harvest) if options.memory else rank_seconds(options.harvest, bare=options.bare)
        )
        print(json.dumps(measured))
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.device != "cpu":
            harvest = make_harvest(Path(folder) / "harvest", SNAPSHOTS)
            print(make_table([measure_cost(harvest, torch.device(options.device), options.repeats)]))
            return
        rows = {}
        if RESULTS.exists():
            rows = {part: Row(**row) for part, row in json.loads(RESULTS.read_text())["rows"].items()}
        if "cost" in options.parts:
            harvest = make_harvest(Path(folder) / "harvest", SNAPSHOTS)
            rows["cost"] = measure_cost(harvest, torch.device("cpu"), options.repeats)
        if "ranks" in options.parts:
            rows["ranks"] = measure_ranks(make_harvest(Path(folder) / "few", RANK_SNAPSHOTS), options.repeats)
        if "memory" in options.parts:
            rows["memory"] = measure_memory(make_harvest(Path(folder) / "many", MANY))
    document = {"table": make_table(rows.values()), "rows": {part: asdict(row) for part, row in rows.items()}}
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    print(document["table"])


@dataclass(frozen=True)
class Subject:
    """What is ranked.

    Attributes:
        network: Makes a network.
        probe: Gives the probe set: images (N, C, H, W) and labels (N,).
        batch_size: Probe samples a forward pass.
    """

    network: Callable[[], nn.Module]
    probe: Callable[[], tuple[Tensor, Tensor]]
    batch_size: int = BATCH_SIZE


def network() -> nn.Module:
    """A ResNet-14 of width 16 for grey images."""
    torch.manual_seed(0)
    return CIFARResNet(14, 10, 16, 1)


def make_harvest(folder: Path, count: int, make: Callable[[], nn.Module] = network) -> Path:
    """Snapshots along a way in weight space; what they tell does not matter here."""
    module = make()
    with SnapshotStore.create(folder, "run", {}) as store:
        for epoch in range(count):
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.mul_(1 + 0.01 * torch.randn_like(parameter))
            store.commit(module.state_dict(), epoch=epoch, global_step=epoch + 1)
    return folder


def probe() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits, enlarged to 28 x 28 pixels."""
    from sklearn.datasets import load_digits  # here, since benchmarks.gpu runs where there is no scikit-learn

    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    return F.interpolate(images, size=SIDE, mode="bilinear"), torch.from_numpy(digits.target).long()


DIGITS = Subject(network, probe)


def select(harvest: Path, device: torch.device | str = "cpu", subject: Subject = DIGITS) -> Selection:
    """Rank all snapshots anew."""
    (harvest / "scores.json").unlink(missing_ok=True)
    loader = DataLoader(TensorDataset(*subject.probe()), batch_size=subject.batch_size)
    with contextlib.redirect_stdout(io.StringIO()):
        return MISelector(batch_size=subject.batch_size).select(
            harvest, subject.network(), loader, device=device, progress=False
        )


def forward_passes(device: torch.device, count: int, subject: Subject = DIGITS) -> None:
    """What a selection can't do without."""
    module, inputs = subject.network().to(device).eval(), subject.probe()[0]
    with torch.no_grad():
        for _ in range(count):
            for batch in torch.split(inputs, subject.batch_size):
                module(batch.to(device))
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_cost(
    harvest: Path, device: torch.device, repeats: int, subject: Subject = DIGITS, count: int = SNAPSHOTS
) -> Row:
    """Both in turn, several times."""
    select(harvest, device, subject)
    ratios = []
    for _ in range(repeats):
        start = time.perf_counter()
        forward_passes(device, count, subject)
        middle = time.perf_counter()
        select(harvest, device, subject)
        ratios.append((time.perf_counter() - middle) / (middle - start))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    note = f"median of {', '.join(f'{ratio:.3f}' for ratio in ratios)}; {len(subject.probe()[1])} images; {name}"
    return Row(f"ranking {count} snapshots / their forward passes", statistics.median(ratios), COST_TARGET, note)


def measure_ranks(harvest: Path, repeats: int) -> Row:
    """One process and two in turn, selecting and running the bare forward passes: the fastest of each.

    A process that shares the machine makes some runs slower and none faster.
    """
    seconds: dict[tuple[bool, int], list[float]] = {}
    for repeat in range(repeats):
        for bare in (False, True):
            for ranks in (1, 2):
                port = 29600 + 10 * repeat + ranks
                seconds.setdefault((bare, ranks), []).append(launch(harvest, ranks, port, bare=bare))
    ratio, control = (min(seconds[bare, 2]) / min(seconds[bare, 1]) for bare in (False, True))
    runs = [
        "/".join(f"{value:.1f}" for value in pair) for pair in zip(seconds[False, 2], seconds[False, 1], strict=True)
    ]
    note = f"the fastest of each, of {', '.join(runs)} s; one thread each, {RANK_SNAPSHOTS} snapshots; "
    return Row("two ranks / one rank", ratio, RANKS_TARGET, f"{note}the bare forward passes: {control:.3f}")


def launch(harvest: Path, ranks: int, port: int, *, bare: bool) -> float:
    """Seconds that the slowest of some ranks takes."""
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.selection", "--harvest", str(harvest)]
    processes = [
        subprocess.Popen(
            [*command, "--bare"] if bare else command,
            env={**shared, "RANK": str(rank), "MASTER_PORT": str(port)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    answers = [process.communicate()[0] for process in processes]
    return max(float(answer.splitlines()[-1]) for answer in answers)


def rank_seconds(harvest: Path, *, bare: bool) -> float:
    """Select as one rank, or run its share of the bare forward passes; the time from when all are ready."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    cpu = torch.device("cpu")
    forward_passes(cpu, 1)  # the first passes are slower
    if dist.get_rank() == 0:
        (harvest / "scores.json").unlink(missing_ok=True)
    dist.barrier()
    start = time.perf_counter()
    if bare:
        forward_passes(cpu, RANK_SNAPSHOTS // dist.get_world_size())
    else:
        select(harvest)
    seconds = time.perf_counter() - start
    dist.destroy_process_group()
    return seconds


def measure_memory(harvest: Path) -> Row:
    """Growth from the tenth to the last snapshot, in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.selection", "--harvest", str(harvest), "--memory"]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    megabytes = json.loads(answer.splitlines()[-1])
    note = f"MB after 10, 50, 100, 150, {MANY} snapshots: {', '.join(f'{value:.0f}' for value in megabytes)}"
    return Row(
        f"growth of memory over {MANY} snapshots / memory", megabytes[-1] / megabytes[0] - 1, MEMORY_TARGET, note
    )


def resident_memory(harvest: Path) -> list[float]:
    """Resident megabytes while snapshots are scored."""
    found: list[float] = []
    load, page = SnapshotStore.load, os.sysconf("SC_PAGE_SIZE")
    seen = 0

    def counted(store: SnapshotStore, *arguments: object) -> object:
        nonlocal seen
        seen += 1
        if seen in (10, 50, 100, 150, MANY):
            found.append(int(Path("/proc/self/statm").read_text().split()[1]) * page / 1e6)
        return load(store, *arguments)  # type: ignore[arg-type]

    SnapshotStore.load = counted  # type: ignore[assignment, method-assign]
    select(harvest)
    return found


if __name__ == "__main__":
    main()
