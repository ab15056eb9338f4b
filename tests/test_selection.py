"""Which paintings are annotated: reproducible, growing, never just the head of the list."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from annotate.errors import UserError
from annotate.selection import describe, draw_random, draw_spread, listed, share

Thumbnails = dict[str, NDArray[np.uint8]]


def collection(groups: tuple[int, ...], seed: int = 0) -> Thumbnails:
    """Paintings in groups of like looks, named in the order of the groups; noise tells the members apart."""
    random = np.random.default_rng(seed)
    found: Thumbnails = {}
    for count in groups:
        look = random.integers(20, 230, (16, 16, 3))
        for _ in range(count):
            found[f"{len(found):04}"] = np.clip(look + random.integers(-9, 9, look.shape), 0, 255).astype(
                np.uint8
            )
    return found


@pytest.mark.parametrize(
    ("total", "fraction", "count"),
    [(129, 0.25, 32), (40, 0.25, 10), (3, 0.01, 1), (0, 0.5, 0), (7, 0.0, 0), (7, 1.0, 7)],
)
def test_a_fraction_of_the_collection(total: int, fraction: float, count: int) -> None:
    assert share(total, fraction) == count


def test_spread_takes_one_of_each_look() -> None:
    groups = (30, 5, 1, 20, 4)
    starts = np.cumsum((0, *groups))
    for seed in range(5):
        chosen = draw_spread(collection(groups), 5, (), seed)
        assert (
            np.bincount(np.searchsorted(starts, [int(key) for key in chosen], "right") - 1).tolist()
            == [1] * 5
        )


def test_spread_covers_better_than_chance_and_than_the_head() -> None:
    paintings = collection(tuple(np.random.default_rng(3).integers(1, 12, 30)))
    order = sorted(paintings)
    looks = describe([paintings[key] for key in order])

    def cover(chosen: set[str]) -> float:
        rows = [order.index(key) for key in chosen]
        return float(np.linalg.norm(looks[:, None] - looks[rows], axis=-1).min(1).mean())

    count = share(len(order), 0.25)
    spread = max(cover(draw_spread(paintings, count, (), seed)) for seed in range(5))
    chance = min(cover(draw_random(order, count, (), seed)) for seed in range(20))
    assert spread < chance
    assert spread < cover(set(order[:count])) / 2


@given(st.integers(1, 40), st.integers(0, 45), st.integers(0, 45), st.integers(0, 3))
def test_a_larger_count_only_adds(total: int, first: int, second: int, seed: int) -> None:
    paintings = collection((total,), seed)
    few, many = sorted((first, second))
    for name in ("random", "spread"):

        def draw(count: int, earlier: set[str], name: str = name) -> set[str]:
            if name == "random":
                return draw_random(paintings, count, earlier, seed)
            return draw_spread(paintings, count, earlier, seed)

        quarter = draw(few, set())
        assert quarter == draw(few, set()), "the seed decides"
        assert len(quarter) == min(few, total)
        more = draw(many, quarter)
        assert quarter <= more
        assert len(more) == min(many, total)


def test_seeds_differ_and_the_head_is_not_preferred() -> None:
    paintings = collection((60,))
    for draw in (draw_random, draw_spread):
        draws = [draw(paintings, 15, (), seed) for seed in range(8)]
        assert len({frozenset(one) for one in draws}) == 8
        in_head = np.mean([len(one & set(sorted(paintings)[:15])) for one in draws])
        assert in_head < 8


def test_earlier_ones_that_are_gone_do_not_count() -> None:
    paintings = collection((10,))
    for draw in (draw_random, draw_spread):
        assert len(draw(paintings, 4, {"gone", "0001"}, 0)) == 4
        assert "0001" in draw(paintings, 4, {"gone", "0001"}, 0)


def test_paintings_that_all_look_alike_can_be_drawn_from() -> None:
    same = {str(n): np.full((16, 16, 3), 7, np.uint8) for n in range(9)}
    assert len(draw_spread(same, 3, (), 0)) == 3


def test_listed_keys() -> None:
    assert listed(["a/b", "", "  c ", "# d is a comment", "#3"], ["a/b", "c", "#3", "e"]) == {
        "a/b",
        "c",
        "#3",
    }
    with pytest.raises(UserError, match="no painting has the key 'x' and 1 more"):
        listed(["x", "y", "a"], ["a"])
