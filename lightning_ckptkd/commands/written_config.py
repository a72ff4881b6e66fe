"""The configs that commands leave in a harvest, by which they can be run again."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from lightning_ckptkd.snapshots import SnapshotStore

SELECT_CONFIG_NAME = "select.yaml"
HARVEST_CONFIG_NAME = "harvest.yaml"


def save_config(parser: ArgumentParser, config: Namespace, store: SnapshotStore, name: str) -> None:
    """Write a command's options into the folder of its harvest, where ``--config`` reads them."""
    text = parser.dump(config.clone(with_meta=False))
    store.folder.write(name, [text.encode()], store.manifest.tag)
