"""What a snapshot is: the manifest, the store that commits and verifies, the choice, the take-over of .ckpt files."""

from lightning_ckptkd.snapshots.manifest import MANIFEST_NAME, Manifest, Snapshot, SoupMember, SoupSnapshot
from lightning_ckptkd.snapshots.selection import SELECTION_NAME, Candidate, JointChoice, Selection, Worth
from lightning_ckptkd.snapshots.soups import commit_soup
from lightning_ckptkd.snapshots.store import SnapshotStore
from lightning_ckptkd.snapshots.takeover import harvest_checkpoints

__all__ = [
    "MANIFEST_NAME",
    "SELECTION_NAME",
    "Candidate",
    "JointChoice",
    "Manifest",
    "Selection",
    "Snapshot",
    "SnapshotStore",
    "SoupMember",
    "SoupSnapshot",
    "Worth",
    "commit_soup",
    "harvest_checkpoints",
]
