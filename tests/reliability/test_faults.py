"""The experiments of docs/reliability.md at counts that take seconds; benchmarks/reliability/ runs them in full."""

from __future__ import annotations

from tests.reliability.disk_errors import error_trials
from tests.reliability.forking import run_trials
from tests.reliability.interruptions import EPOCHS, KINDS
from tests.reliability.power_loss import power_loss_trials


def test_killed_at_every_call() -> None:
    result = run_trials("kills", 300, 0)
    assert result["places"] < result["trials"] == 300, "every place at least once"
    assert result["snapshots_found"] > 400


def test_every_call_fails() -> None:
    result = error_trials()
    assert result["trials"] == 8 * result["calls"] > 900
    assert result["refused"] > 0.9 * result["trials"]


def test_a_disk_that_is_really_full() -> None:
    assert run_trials("full_disk", 4, 0)["trials"] == 4


def test_power_loss() -> None:
    result = power_loss_trials(600)
    assert result["old"] > 100
    assert result["new"] > 30


def test_two_runs_start_together() -> None:
    result = run_trials("two_runs", 6, 0)
    assert result["one_won"] == 6
    assert result["refused_by_the_lock"] >= 3, "two of one run are told apart by nothing else"


def test_killed_while_filling_a_cache() -> None:
    result = run_trials("cache_faults", 2, 0)
    assert result["trials"] == 6
    assert result["chunks_kept"] > 0
    assert "is being written by" in result["refusal"] and "or wait until that one has ended" in result["refusal"]


def test_one_of_two_ranks_fails() -> None:
    assert run_trials("rank_faults", 1, 0)["trials"] == 18


def test_interrupted_and_resumed() -> None:
    """Every fourth of ten epochs by each of four ways: the harvest is that of an uninterrupted run, bit for bit."""
    result = run_trials("interruptions", 1, 0, 4)
    assert result["trials"] == len(range(0, EPOCHS, 4)) * len(KINDS)
    assert result["made_up_for_from_the_checkpoint"] > 0


def test_object_stores() -> None:
    """On a real S3 server: two trainers into one URL, readers under a writer, kills, a store that goes for a while."""
    results = run_trials("object_stores", "starts", 2, "opens", 20, "kills", 5, "short-outage", 1)
    starts, opens, kills, outage = results.values()
    assert starts["one_won"] == starts["refused_by_the_lock"] + starts["refused_by_the_manifest"] == 2
    assert opens["whole"] == 20
    assert opens["different_manifests"] > 3
    assert kills["trials"] == 5
    assert kills["trainings"] == 1
    assert kills["locks_left_and_taken_over"] > 0
    assert outage["refuses"]["dropped"] == 4
