from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_ckptkd import SnapshotError
from lightning_ckptkd.snapshots.averaging import WeightMean
from lightning_ckptkd.snapshots.layout import find_ties


def weights(value: float, **others: Tensor) -> dict[str, Tensor]:
    return {"a": torch.full((2, 3), value), "count": torch.tensor(int(value)), **others}


def test_the_mean_and_the_mean_with_one_more() -> None:
    mean = WeightMean(weights(1.0), "one")
    mean.add(weights(2.0), "two")
    torch.testing.assert_close(mean.mean()["a"], torch.full((2, 3), 1.5), rtol=0, atol=0)
    torch.testing.assert_close(mean.mean(weights(6.0), "six")["a"], torch.full((2, 3), 3.0), rtol=0, atol=0)
    assert mean.size == 2, "the one more has not joined"
    mean.add(weights(6.0), "six")
    assert mean.size == 3
    torch.testing.assert_close(mean.mean()["a"], torch.full((2, 3), 3.0), rtol=0, atol=0)


def test_the_mean_of_random_weights_is_that_of_float64() -> None:
    drawn = torch.randn(7, 50, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.complex64):
        stored = drawn.to(dtype)
        mean = WeightMean({"w": stored[0]}, "0")
        for place in range(1, 7):
            mean.add({"w": stored[place]}, str(place))
        wide = stored.to(torch.complex128 if dtype.is_complex else torch.float64).mean(0)
        found = mean.mean()["w"]
        assert found.dtype == dtype
        if dtype in (torch.float32, torch.complex64):
            assert torch.equal(found, wide.to(dtype))
        else:  # rounded twice, once from float32
            torch.testing.assert_close(found.double(), wide, rtol=1.01 * torch.finfo(dtype).eps / 2, atol=1e-7)


def test_the_mean_of_equals_is_they_bit_for_bit() -> None:
    one = {"w": torch.randn(100, generator=torch.Generator().manual_seed(0)), "n": torch.tensor(3)}
    mean = WeightMean(one, "one")
    for _ in range(6):
        mean.add(one, "again")
    assert all(torch.equal(value, one[name]) for name, value in mean.mean().items())
    assert mean.kept == ()
    assert mean.differing() == set()


def test_what_is_no_number_stays_the_first_members() -> None:
    others = [{"mask": torch.tensor([True, place == 0]), "same": torch.tensor([3])} for place in range(2)]
    mean = WeightMean(weights(5.0, **others[0]), "five")
    mean.add(weights(9.0, **others[1]), "nine")
    found = mean.mean()
    assert found["count"] == 5
    assert found["mask"].tolist() == [True, True]
    assert mean.kept == ("count", "mask")
    assert mean.differing() == {"a", "count", "mask"}
    assert mean.differing(weights(5.0, mask=others[0]["mask"], same=torch.tensor([4]))) == {
        "a",
        "count",
        "mask",
        "same",
    }
    found["count"] += 1
    assert mean.mean()["count"] == 5, "nobody is given the members' own"


def test_tied_tensors_stay_one() -> None:
    def tied(value: float) -> dict[str, Tensor]:
        shared = torch.full((4,), value)
        return {"in": shared, "out": shared, "apart": torch.full((4,), value)}

    mean = WeightMean(tied(1.0), "one")
    mean.add(tied(2.0), "two")
    found = mean.mean()
    assert find_ties(found) == {"out": "in"}
    assert found["in"].tolist() == found["out"].tolist() == found["apart"].tolist() == [1.5] * 4
    untied = {name: value.clone() for name, value in tied(3.0).items()}
    assert find_ties(mean.mean(untied, "three")) == {}
    mean.add(untied, "three")
    assert find_ties(mean.mean()) == {}
    assert mean.mean()["out"].tolist() == [2.0] * 4


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"a": torch.zeros(2, 3)}, "count is missing"),
        (weights(1.0, b=torch.zeros(1)), "b is extra"),
        ({**weights(1.0), "a": torch.zeros(3, 3)}, r"a is \(3, 3\) instead of \(2, 3\)"),
        ({**weights(1.0), "a": torch.zeros(2, 3, dtype=torch.long)}, "a is torch.int64 instead of torch.float32"),
    ],
)
def test_weights_that_do_not_match_are_one_error(other: dict[str, Tensor], words: str) -> None:
    mean = WeightMean(weights(1.0), "first.safetensors")
    for call in (mean.add, mean.mean):
        with pytest.raises(SnapshotError, match=f"other.safetensors can't be .*first.safetensors.*{words}"):
            call(other, "other.safetensors")
    assert mean.size == 1


def test_numbers_of_eight_bits_have_no_mean() -> None:
    one, other = ({"w": torch.tensor([value]).to(torch.float8_e4m3fn)} for value in (1.0, 2.0))
    mean = WeightMean(one, "one")
    mean.add(one, "the same")
    with pytest.raises(SnapshotError, match="of other is torch\\.float8_e4m3fn"):
        mean.add(other, "other")
