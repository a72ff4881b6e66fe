from __future__ import annotations

import pytest

from lightning_ckptkd.snapshots.runs import (
    Facts,
    contradiction,
    describe_groups,
    find_contradiction,
    find_difference,
    group,
    matches,
)


def facts(epoch: int, step: int, name: str = "", **others: object) -> Facts:
    return Facts(name or f"epoch={epoch}-step={step}.ckpt", epoch, step, **others)  # type: ignore[arg-type]


def names(groups: list[list[Facts]]) -> list[list[str]]:
    return [[member.name for member in members] for members in groups]


def test_what_one_run_saves_is_no_contradiction() -> None:
    """At the ends of epochs, in the middle of them, after training, twice at one step, by two optimisers."""
    run = [
        facts(0, 3, batches=3),
        facts(0, 4, batches=4, ended=True),
        facts(1, 6, batches=6),
        facts(1, 8, batches=8, ended=True, digest="x"),
        facts(2, 8, "final.ckpt", batches=8, ended=True, digest="x"),
        facts(1, 8, "last.ckpt", batches=8, ended=True, digest="x"),
        facts(2, 9, batches=9),
        facts(2, 10, batches=9),
        facts(3, 12),
    ]
    assert find_contradiction(run) is None


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        (facts(0, 4, digest="x"), facts(0, 4, digest="y"), "both are of step 4 and their weights differ"),
        (facts(3, 4), facts(2, 5), "steps 4 and 5 are of epochs 3 and 2"),
        (facts(1, 4, batches=9), facts(1, 5, batches=8), "steps 4 and 5 come after 9 and 8 batches"),
        (facts(1, 4, ended=True), facts(1, 5, ended=True), "epoch 1 ends at step 4 and at step 5"),
        (
            facts(1, 4, shapes=frozenset({("a", (2,))})),
            facts(2, 5, shapes=frozenset({("a", (3,))})),
            "other names or shapes",
        ),
    ],
)
def test_contradictions(one: Facts, other: Facts, reason: str) -> None:
    for pair in ((one, other), (other, one)):
        told = contradiction(*pair)
        assert told is not None
        assert reason in told
        assert find_contradiction(pair) is not None


def test_a_contradiction_between_distant_files_is_found() -> None:
    fold = [facts(epoch, 10 * epoch + 10, ended=True) for epoch in range(4)]
    other = [facts(epoch, 12 * epoch + 12, ended=True) for epoch in range(4)]
    assert find_contradiction(fold) is None
    assert find_contradiction([*fold, *other]) is not None
    assert find_contradiction([fold[0], facts(0, 11), facts(0, 12, "other.ckpt", ended=True)]) is not None


def test_signs() -> None:
    run = [facts(epoch, epoch + 1, signs={"lr": "0.1", "fold": "0"}) for epoch in range(3)]
    assert find_difference(run) is None
    other = facts(3, 4, signs={"lr": "0.1", "fold": "1"})
    assert find_difference([*run, other]) == (run[0], other, "fold")


def test_groups_by_version() -> None:
    first = [facts(epoch, epoch + 1, digest=f"a{epoch}") for epoch in range(3)]
    second = [
        facts(epoch, epoch + 1, f"epoch={epoch}-step={epoch + 1}-v1.ckpt", digest=f"b{epoch}") for epoch in range(3)
    ]
    assert sorted(names(group([*second, *first]))) == sorted(names([first, second]))
    told = describe_groups([*first, *second])
    assert "files='!*-v1.ckpt' takes it." in told
    assert "files='*-v1.ckpt' takes it." in told
    assert "could as well" not in told


def test_files_that_could_be_of_either_run_are_named() -> None:
    """A run that was killed after epoch 2 and started anew: only the names that were taken have -v1."""
    first = [facts(epoch, epoch + 1, digest=f"a{epoch}") for epoch in range(3)]
    second = [
        facts(epoch, epoch + 1, f"epoch={epoch}-step={epoch + 1}-v1.ckpt", digest=f"b{epoch}") for epoch in range(3)
    ]
    later = [facts(epoch, epoch + 1) for epoch in (3, 4)]
    told = describe_groups([*first, *second, *later])
    assert "epoch=3-step=4.ckpt, epoch=4-step=5.ckpt could as well be of another: name the files one by one" in told


def test_groups_without_any_help_of_names() -> None:
    run = [facts(epoch, epoch + 1, f"{name}.ckpt", digest=name) for epoch, name in enumerate("abc")]
    other = [facts(epoch, epoch + 1, f"{name}.ckpt", digest=name) for epoch, name in enumerate("xyz")]
    groups = group([*run, *other])
    assert sorted(len(members) for members in groups) == [1] * 6
    told = describe_groups([*run, *other])
    assert "Group 2: x.ckpt; files='x.ckpt' takes it." in told


def test_groups_by_folds() -> None:
    folds = [
        facts(epoch, 5 * epoch + 5, f"fold{fold}-epoch={epoch}-step={5 * epoch + 5}.ckpt", digest=f"{fold}{epoch}")
        for fold in (0, 1)
        for epoch in (0, 1)
    ]
    told = describe_groups(folds)
    assert "files='fold0-epoch=*' takes it" in told
    assert "files='fold1-epoch=*' takes it" in told


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [
        (["*"], "abc"),
        (["a.ckpt"], "a"),
        (["a*", "c*"], "ac"),
        (["!b.ckpt"], "ac"),
        (["*", "![ab]*"], "c"),
        (["d*"], ""),
    ],
)
def test_patterns(patterns: list[str], wanted: str) -> None:
    assert "".join(name for name in "abc" if matches(f"{name}.ckpt", patterns)) == wanted


def test_a_name_that_looks_like_a_pattern() -> None:
    assert matches("a[1].ckpt", ["a[1].ckpt"])
    assert not matches("a1.ckpt", ["!a1.ckpt"])
