"""The command ``ckptkd harvest``."""

from __future__ import annotations

from pathlib import Path

# the package says only at run time what it exports
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # type: ignore[attr-defined]

from lightning_ckptkd.commands.written_config import HARVEST_CONFIG_NAME, save_config
from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.snapshots import SnapshotStore, harvest_checkpoints


def make_harvest_parser() -> ArgumentParser:
    """The command's options."""
    parser = ArgumentParser(description="Makes a harvest of a folder of Lightning .ckpt files, without retraining.")
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="Configuration file; each run writes one.")
    parser.add_argument("--checkpoints", type=str, help="Folder with the .ckpt files; its name alone does as well.")
    parser.add_argument("--snapshots", type=str, help="Folder to make the harvest in; likewise. Default: beside them.")
    parser.add_argument("--submodule", type=str, help="Attribute path of the part of the LightningModule to harvest.")
    parser.add_argument("--files", type=str, nargs="+", help="Names or patterns of the files to take; ! leaves out.")
    return parser


def harvest(parser: ArgumentParser, config: Namespace) -> SnapshotStore:
    """Make what the options say."""
    if config.checkpoints is None:
        raise ArgumentError("checkpoints: give the folder with the .ckpt files: `ckptkd harvest DIR`.")
    snapshots = config.snapshots or str(Path(config.checkpoints).parent / "snapshots")
    store = harvest_checkpoints(config.checkpoints, snapshots, config.submodule, files=config.files)
    save_config(parser, config, store, HARVEST_CONFIG_NAME)
    print(f"{len(store.snapshots)} snapshots in {store.folder}. Next: `ckptkd select {store.folder}`")
    return store
