"""``size``: bytes on disk against bytes of weights."""

from __future__ import annotations

from dataclasses import dataclass

from torchvision.models import resnet50

from benchmarks.harvest.measured import Options, Row
from benchmarks.harvest.trainings import Idler, idle_data, quiet_trainer, tensor_bytes
from lightning_ckptkd import CheckpointHarvester

SIZE_TARGET = 1.01


@dataclass(frozen=True)
class SizeResult:
    """Bytes of a harvest's folder."""

    snapshots: int
    files: dict[str, int]
    tensor_bytes: int
    ratio: float

    def rows(self) -> list[Row]:
        """The lines of the table."""
        note = f"{self.snapshots} snapshots, {sum(self.files.values())} bytes in {len(self.files)} files"
        return [Row("bytes on disk / bytes of the weights", self.ratio, SIZE_TARGET, note)]


def measure_size(options: Options) -> SizeResult:
    """Three snapshots of a ResNet-50."""
    folder, snapshots = options.folder / "size", 3
    module = Idler(resnet50(weights=None))
    trainer = quiet_trainer(options.device, options.folder, [CheckpointHarvester(folder)], max_epochs=snapshots)
    trainer.fit(module, idle_data())
    files = {path.name: path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    weights = snapshots * tensor_bytes(module)
    return SizeResult(snapshots, files, weights, sum(files.values()) / weights)
