from __future__ import annotations

from collections import Counter

import pytest

from lightning_ckptkd import ArgumentError
from lightning_ckptkd.teachers import AllTeachers, Progressive, RandomTeacher, Route, TeacherSchedule

EPOCHS = [9, 2, 5]  # the best first, as a selection gives them


def test_one_at_random_each_step() -> None:
    schedule = RandomTeacher(seed=1)
    drawn = [schedule.teachers(EPOCHS, step, 0, 0.0) for step in range(3000)]
    counts = Counter(place for (place,) in drawn)
    assert set(counts) == {0, 1, 2}
    assert all(900 < count < 1100 for count in counts.values())
    again = RandomTeacher(seed=1)
    assert [again.teachers(EPOCHS, step, 3, 0.5) for step in range(3000)] == drawn
    assert [RandomTeacher(seed=2).teachers(EPOCHS, step, 0, 0.0) for step in range(3000)] != drawn


@pytest.mark.parametrize(
    ("cumulative", "expected"),
    [(False, [[1], [1], [2], [2], [0], [0]]), (True, [[1], [1], [1, 2], [1, 2], [1, 2, 0], [1, 2, 0]])],
)
def test_progressive_in_the_order_of_training(cumulative: bool, expected: list[list[int]]) -> None:
    schedule = Progressive(cumulative)
    assert [schedule.teachers(EPOCHS, 0, 0, part) for part in (0, 0.3, 0.34, 0.6, 0.67, 1.0)] == expected


def test_a_route() -> None:
    schedule = Route({0: 5, 2: 9})
    schedule.check(EPOCHS)
    assert [schedule.teachers(EPOCHS, 0, epoch, 0.0) for epoch in range(4)] == [[2], [2], [0], [0]]
    with pytest.raises(ArgumentError, match=r"names the epochs \[5\], but the teachers are of \[2, 9\]"):
        schedule.check([2, 9])
    with pytest.raises(ArgumentError, match=r"stages=.1: 5. should start with the student's epoch 0"):
        Route({1: 5})


def test_one_teacher_is_too_few_to_go_from_one_to_another() -> None:
    for schedule in (RandomTeacher(), Progressive()):
        schedule.check([9, 2])
        with pytest.raises(ArgumentError, match=rf"schedule={type(schedule).__name__} .* there is only one .a soup"):
            schedule.check([9])
    AllTeachers().check([9])
    Route({0: 9}).check([9])


def test_epochs_with_teachers() -> None:
    assert AllTeachers().teachers(EPOCHS, 0, 0, 0.0) == [0, 1, 2]
    for schedule in (AllTeachers(2, 4), RandomTeacher(0, 2, 4), Progressive(True, 2, 4), Route({0: 5}, 2, 4)):
        assert [schedule.teaches(epoch) for epoch in range(6)] == [False, False, True, True, False, False]
    assert all(AllTeachers(from_epoch=1).teaches(epoch) for epoch in (1, 10**6))

    class Own(TeacherSchedule):
        """One that was written before there were such epochs."""

        def __init__(self) -> None:
            pass

        def teachers(self, *_: object) -> list[int]:
            return [0]

    assert Own().teaches(0)
