"""What a choice has to do with the harvest's folder: its snapshots are read from there, and it is written there."""

from __future__ import annotations

from functools import partial

from lightning_ckptkd.rank_zero import rank_zero_info
from lightning_ckptkd.selecting import report
from lightning_ckptkd.selecting.items import Harvested, read_items
from lightning_ckptkd.selecting.picture import draw_selection
from lightning_ckptkd.selecting.record import make_selection
from lightning_ckptkd.selecting.rules import PositionRule, Rule
from lightning_ckptkd.selecting.score_files import ScoreFiles
from lightning_ckptkd.selecting.select import select_by_position
from lightning_ckptkd.selecting.settings import SelectionSettings
from lightning_ckptkd.snapshots import Selection, SnapshotStore, commit_soup
from lightning_ckptkd.trainer.ranks import on_rank_zero


def harvested(store: SnapshotStore) -> Harvested:
    """The snapshots of a harvest, with where their scores and soups are."""
    return Harvested(
        read_items(store),
        ScoreFiles(store),
        str(store.folder),
        whole=store.manifest.source.get("submodule") is None,
        commit_soup=partial(commit_soup, store.folder),
    )


def choose_by_place(store: SnapshotStore, settings: SelectionSettings, *, progress: bool = False) -> Selection:
    """Choose by the place in training, and publish it.

    Args:
        store: The harvest.
        settings: How; the rule is a PositionRule.
        progress: Whether to show a progress bar.

    Raises:
        CkptKDError: As :func:`.select_by_position`.
    """
    rule = settings.rule
    assert isinstance(rule, PositionRule)
    if settings.race:
        rank_zero_info(f"race=True: rule {rule.name!r} goes by position, and no snapshot is run.")
    outcome = select_by_position(harvested(store), settings, rule, progress=progress)
    selection = make_selection(store.manifest.run_id, settings, outcome)
    on_rank_zero(lambda: publish(store, selection, rule))
    return selection


def publish(store: SnapshotStore, selection: Selection, rule: Rule) -> None:
    """Write the choice and its picture into the folder, and print its table."""
    selection.write(store)
    draw_selection(selection, rule.words, store)
    print(report.format_selection(selection, rule.words, store))
