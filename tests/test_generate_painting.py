"""The cached sampler draws the tokens that a naive loop draws."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from golden_models import GRIDS, transformer, vector
from numpy.typing import NDArray
from skimage.filters import gaussian
from torch import Tensor

from generate import painting
from generate.config import GPTConfig
from generate.decoding import Decoder, KeptSessions, Session
from generate.drafting import Luck
from generate.gpt import GPT
from generate.painting import Chance, Given, paint_tokens
from generate.projection import Precision, largest_int8_weight, onednn_is_quick, projection
from generate.scheduling import Group, Schedule
from generate.window import block_waves, exact_waves, local


def naive(model: GPT, mask_tokens: Tensor, chance: Chance) -> tuple[Tensor, Tensor]:
    """The reference's loop: a forward over the whole window for every token."""
    batch, height, width = mask_tokens.shape
    tokens, total = torch.zeros_like(mask_tokens), torch.zeros(batch)
    with torch.no_grad():
        for i in range(height):
            for j in range(width):
                row, column = local(i, height, 16), local(j, width, 16)
                rows, columns = slice(i - row, i - row + 16), slice(j - column, j - column + 16)
                window = [grid[:, rows, columns].flatten(1) for grid in (mask_tokens, tokens)]
                logits = model(torch.cat(window, 1)[:, :-1])[:, 255 + row * 16 + column]
                drawn = chance.draw(logits, [(number, i, j) for number in range(batch)])
                tokens[:, i, j] = drawn
                total += logits.log_softmax(1).gather(1, drawn[:, None])[:, 0]
    return tokens, total / (height * width)


@pytest.mark.parametrize("grid", GRIDS)
def test_greedy_tokens_are_the_references(grid: str) -> None:
    painted = paint_tokens(Decoder(transformer()), vector(f"mask_indices_{grid}"), Chance(0.7, top_k=1))
    assert torch.equal(painted.tokens, vector(f"greedy_tokens_{grid}"))


@pytest.mark.parametrize("size", [(16, 16), (18, 21), (25, 16), (17, 33)])
def test_exact_mode_draws_what_the_naive_loop_draws(size: tuple[int, int]) -> None:
    model, chance = transformer(), Chance(temperature=1.0, top_k=20, seed=5)
    torch.manual_seed(sum(size))
    mask_tokens = torch.randint(64, (2, *size))
    tokens, likely = naive(model, mask_tokens, chance)
    painted = paint_tokens(Decoder(model), mask_tokens, chance)
    assert torch.equal(painted.tokens, tokens)
    torch.testing.assert_close(painted.log_likelihood, likely, atol=1e-4, rtol=0)


@pytest.mark.parametrize("stride", [1, 8])
def test_batching_changes_nothing(stride: int) -> None:
    decoder, chance = Decoder(transformer()), Chance(temperature=1.0, top_k=20, seed=3)
    mask_tokens = torch.randint(64, (3, 17, 25), generator=torch.Generator().manual_seed(1))
    together = paint_tokens(decoder, mask_tokens, chance, stride).tokens
    for number in range(3):
        alone = paint_tokens(
            decoder, mask_tokens[number : number + 1], chance, stride, numbers=[number]
        ).tokens
        assert torch.equal(alone[0], together[number])


@pytest.mark.parametrize("shared", [0, 5])
def test_holes_are_not_seen(shared: int) -> None:
    """Whatever stands in them: in what is fed, what is shared, and what is looked ahead at."""
    decoder, holes = Decoder(transformer()), [2, 6, 9]
    tokens = torch.randint(64, (2, 12), generator=torch.Generator().manual_seed(1))
    tokens[:, :shared] = tokens[0, :shared]
    other = tokens.clone()
    other[:, [hole for hole in holes if hole >= shared]] += 1
    found = []
    with torch.inference_mode():
        for some in (tokens, other % 64):
            session = decoder.session(2, [hole for hole in holes if hole >= shared])
            if shared:
                session.share(some[:1, :shared])
            first = session.feed(some[:, session.seen : 8])
            one = session.look_ahead(some[:, 8:11], [8])[:, [0, 2]]  # behind 8 and 10; 9 is a hole itself
            last = session.look_ahead(some[:, 11:], [11])
            found.append((first, one, last))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
        assert torch.isfinite(mine).all()
    seen = decoder.session(2).feed(tokens)
    assert (seen - found[0][2][:, 0]).abs().max() > 1e-2


def test_block_mode_is_exact_mode_inside_one_window() -> None:
    decoder, chance = Decoder(transformer()), Chance(temperature=1.0, top_k=20, seed=3)
    mask_tokens = torch.randint(64, (2, 16, 16), generator=torch.Generator().manual_seed(1))
    exact, block = (paint_tokens(decoder, mask_tokens, chance, stride).tokens for stride in (1, 8))
    assert torch.equal(exact, block)


@pytest.mark.parametrize("side", [16, 4])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 40), (31, 17), (40, 32)])
@pytest.mark.parametrize("stride", ["exact", "blocks"])
def test_waves_paint_every_token_once_and_after_what_it_needs(
    height: int, width: int, stride: str, side: int
) -> None:
    """All that stands before it in exact mode; in blocks what is before, above and above to the left of it."""
    waves = exact_waves(height, width, side) if stride == "exact" else block_waves(height, width, side)
    painted = np.zeros((height, width), int)
    for wave in waves:
        known = painted > 0
        for task in wave:
            window = known[task.top : task.top + side, task.left : task.left + side].ravel().copy()
            window[list(task.places)] = True
            if stride == "exact":
                assert window[: task.places[-1]].all()
            for place in task.places:
                assert place % side == 0 or window[place - 1]
                assert window.reshape(side, side)[: place // side + 1, : place % side + 1].all()
        for task in wave:
            for place in task.places:
                painted[task.top + place // side, task.left + place % side] += 1
    assert (painted == 1).all()


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(16, 40), (31, 17), (40, 32)])
@pytest.mark.parametrize("stride", ["exact", "blocks"])
def test_windows_go_on_as_others_paint_and_see_what_earlier_waves_paint(
    height: int, width: int, stride: str, most: int
) -> None:
    """Whatever the paces and however few windows have room: nothing is painted twice, and nobody waits forever."""
    side, random = 16, np.random.default_rng(height)
    waves = list((exact_waves if stride == "exact" else block_waves)(height, width, side))
    number = np.zeros((height, width), int)  # of the wave
    for n, wave in enumerate(waves):
        for task in wave:
            rows, columns = np.divmod(task.places, side)
            number[task.top + rows, task.left + columns] = n
    painted = np.zeros((height, width), bool)
    schedule, running = Schedule(iter(waves), painted, side, most), list[tuple[Group, list[int]]]()

    def cells(grid: NDArray[Any], group: Group) -> list[NDArray[Any]]:
        return [grid[one.top : one.top + side, one.left : one.left + side].ravel() for one in group.tasks]

    while not painted.all():
        while group := schedule.next(2 * most - sum(len(one.tasks) for one, _ in running) if running else 99):
            assert schedule.known(group) >= group.places[0]
            running.append((group, list(group.places)))
        moved = False
        for group, places in running:
            end = schedule.known(group)
            count = random.integers(1, 20)
            for place in places[:count]:
                if place > end:
                    break
                for there, waves_ in zip(cells(painted, group), cells(number, group), strict=True):
                    own = waves_[place]
                    seen = [one for one in range(place) if one not in group.holes]
                    assert there[seen].all()
                    assert (waves_[[*group.holes]] >= own).all()
                    assert (waves_[[one for one in seen if one not in group.places]] < own).all()
                for task in group.tasks:
                    row, column = divmod(place, side)
                    assert not painted[task.top + row, task.left + column]
                    painted[task.top + row, task.left + column] = True
                places.remove(place)
                moved = True
        running = [(group, places) for group, places in running if places]
        assert moved
    assert schedule.next(99) is None


def test_windows_share_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A canvas takes far fewer passes than it has tokens, even without guesses."""
    decoder, passes = Decoder(transformer()), list[int]()
    monkeypatch.setattr(Luck, "guesses", lambda luck, sequences: 0)
    paint_tokens(decoder, torch.zeros(1, 32, 48, dtype=torch.long), Chance(), 8, advance=passes.append)
    assert len(passes) < 32 * 48 / 3
    assert sum(passes) == 32 * 48


@pytest.mark.parametrize("seed", [95, 101, 115, 229])
def test_windows_that_wait_for_each_other_all_go_on(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regions of any shape are kept. With these, one window had to wait for another that was asked behind it."""
    torch.manual_seed(0)
    decoder = Decoder(GPT(GPTConfig(vocab_size=16, block_size=32, layers=1, heads=2, width=16)).eval())
    random = np.random.default_rng(seed)
    size = tuple(int(random.integers(8, 16)) for _ in range(2))
    keep = torch.from_numpy(gaussian(random.normal(size=size), random.uniform(1, 3)) > 0)
    mask_tokens, kept = (torch.from_numpy(random.integers(0, 16, (1, *size))) for _ in range(2))
    chance, given = Chance(1.0, 3, seed), Given(kept[0], keep)
    tokens = paint_tokens(decoder, mask_tokens, chance, 2, given=given).tokens
    assert torch.equal(tokens[:, keep], kept[:, keep])
    monkeypatch.setattr(painting, "SEQUENCES", 1)  # one window at a time
    assert torch.equal(paint_tokens(decoder, mask_tokens, chance, 2, given=given).tokens, tokens)


def test_rows_follow_each_other_at_a_distance() -> None:
    """A canvas of n rows does not take n times the waves of one row: several rows are painted at once."""
    assert sum(1 for _ in exact_waves(64, 64, 16)) < 64 * 64 / 3.5


def test_a_window_that_stands_still_is_one_task() -> None:
    """So that what it paints can be guessed ahead."""
    assert [len(task.places) for wave in exact_waves(16, 16, 16) for task in wave] == [256]
    tall = [task for wave in exact_waves(24, 16, 16) for task in wave]
    assert [(task.top, len(task.places)) for task in tall] == [
        (0, 9 * 16),
        *((top, 16) for top in range(1, 8)),
        (8, 8 * 16),
    ]
    wide = [task for wave in exact_waves(16, 24, 16) for task in wave][:9]
    assert [len(task.places) for task in wide] == [9, 1, 1, 1, 1, 1, 1, 1, 8]


def test_the_windows_place_by_hand() -> None:
    assert [local(i, 20, 16) for i in range(20)] == [*range(9), 8, 8, 8, 8, *range(9, 16)]
    assert [local(i, 16, 16) for i in range(16)] == list(range(16))


def test_noise_comes_from_the_seed_and_the_place() -> None:
    logits = torch.zeros(4, 500)
    places = [(0, 1, 2), (0, 2, 1), (1, 1, 2), (0, 1, 2)]
    drawn = Chance(1.0, 500, seed=1).draw(logits, places).tolist()
    assert drawn[0] == drawn[3]
    assert len(set(drawn)) == 3
    assert drawn != Chance(1.0, 500, seed=2).draw(logits, places).tolist()


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -30.0]).log_softmax(0)
    chance = Chance(temperature=0.5, top_k=3, seed=0)
    places = [(0, i, j) for i in range(80) for j in range(80)]
    drawn = chance.draw(logits.expand(len(places), -1), places)
    shares = torch.bincount(drawn, minlength=4) / len(places)
    torch.testing.assert_close(shares, (logits / 0.5).softmax(0), atol=0.02, rtol=0)


@pytest.mark.parametrize(("precision", "off"), [("float32", 1e-5), ("bfloat16", 0.05), ("int8", 0.1)])
def test_precisions_stay_close(precision: Precision, off: float) -> None:
    if precision == "int8":
        off *= 127 / largest_int8_weight()  # weights of 7 bits, on a processor without VNNI
    model = transformer()
    tokens = torch.randint(64, (2, 300), generator=torch.Generator().manual_seed(0))
    exact = model(tokens)[:, -1].detach()
    session = Decoder(model, precision).session(2)
    session.feed(tokens[:, :299])
    assert (session.feed(tokens[:, 299:]) - exact).norm() < off * exact.norm()


@pytest.mark.parametrize(("precision", "off"), [("float32", 1e-5), ("bfloat16", 0.02), ("int8", 0.02)])
def test_a_shared_beginning_changes_nothing(precision: Precision, off: float) -> None:
    decoder, random = Decoder(transformer(), precision), torch.Generator().manual_seed(0)
    beginning = torch.randint(64, (2, 256), generator=random)  # each of three sequences
    rest = [torch.randint(64, (6, count), generator=random) for count in (40, 1, 5)]
    with torch.inference_mode():
        shared, plain = decoder.session(6), decoder.session(6)
        pairs = [(shared.share(beginning), plain.feed(beginning.repeat_interleave(3, 0)))]
        pairs += [(shared.feed(tokens), plain.feed(tokens)) for tokens in rest]
    for ours, usual in pairs:
        assert (ours - usual).norm() < off * usual.norm()
    assert shared.bytes < 0.7 * plain.bytes
    with pytest.raises(ValueError, match="only the beginning"):
        shared.share(beginning)


@pytest.mark.parametrize("size", [(1, 64), (5, 64), (2, 7, 64), (2, 40, 64)])
@pytest.mark.parametrize("outputs", [48, 192])
def test_int8_rows_do_not_see_each_other(size: tuple[int, ...], outputs: int) -> None:
    torch.manual_seed(3)
    layer, x = torch.nn.Linear(64, outputs), torch.randn(*size) * torch.rand(*size[:-1], 1) * 100
    eight = projection(layer.weight, layer.bias, "int8")
    with torch.inference_mode():
        together, exact = eight(x), layer(x)
        for row, one in zip(x.reshape(-1, 64), together.reshape(-1, outputs), strict=True):
            assert torch.equal(eight(row[None])[0], one)
    assert (together - exact).norm() < 0.02 * 127 / largest_int8_weight() * exact.norm()


def test_int8_products_are_exact() -> None:
    """Also of the largest numbers, which processors without VNNI cannot add."""
    eight = projection(torch.full((192, 64), 3.0), None, "int8")
    for rows in (1, 8, 40):
        torch.testing.assert_close(eight(torch.full((rows, 64), 5.0)), torch.full((rows, 192), 960.0))


def test_int8_is_the_same_whichever_kernel_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    weight, x = torch.randn(192, 64), torch.randn(16, 64)
    found = []
    for quick in (True, False):
        monkeypatch.setattr("generate.projection.onednn_is_quick", lambda quick=quick: quick)
        with torch.inference_mode():
            found.append(projection(weight, None, "int8")(x))
    assert torch.equal(*found)


def test_a_kernel_that_is_a_thousand_times_slower_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """As oneDNN's reference is, on processors that it has no other kernel for."""

    def slow(x: torch.Tensor, *rest: object) -> torch.Tensor:
        time.sleep(0.2)
        return x

    for kernel, taken in ((slow, False), (lambda x, *rest: x, True)):
        monkeypatch.setattr("generate.projection._onednn", kernel)
        assert onednn_is_quick.__wrapped__() == taken


@pytest.mark.parametrize("limit", [0, 1, 3, 100])
def test_what_is_kept_changes_no_token_and_stays_in_its_memory(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, chance = Decoder(transformer()), Chance(temperature=1.0, top_k=20, seed=3)
    mask_tokens = torch.randint(64, (1, 18, 25), generator=torch.Generator().manual_seed(1))
    usual = paint_tokens(decoder, mask_tokens, chance).tokens
    one = decoder.session(1).bytes
    monkeypatch.setattr(painting, "KeptSessions", lambda: KeptSessions(limit * one))
    assert torch.equal(paint_tokens(decoder, mask_tokens, chance).tokens, usual)


@pytest.mark.parametrize("stride", [1, 8])
@pytest.mark.parametrize("sequences", [1, 4])
def test_windows_that_share_a_step_are_few_and_change_no_token(
    stride: int, sequences: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, chance = Decoder(transformer()), Chance(temperature=1.0, top_k=20, seed=3)
    mask_tokens = torch.randint(64, (2, 26, 35), generator=torch.Generator().manual_seed(1))
    usual = paint_tokens(decoder, mask_tokens, chance, stride).tokens
    asked = []
    begin = decoder.session

    def session(batch: int, holes: Sequence[int]) -> Session:
        asked.append(batch)
        return begin(batch, holes)

    monkeypatch.setattr(decoder, "session", session)
    monkeypatch.setattr(painting, "SEQUENCES", sequences)
    assert torch.equal(paint_tokens(decoder, mask_tokens, chance, stride).tokens, usual)
    assert max(asked) <= max(sequences, 2)


def test_where_sessions_do_not_all_fit_the_last_one_goes() -> None:
    decoder = Decoder(transformer())
    sessions = [decoder.session(1) for _ in range(3)]
    kept = KeptSessions(2 * sessions[0].bytes)
    for n, session in enumerate(sessions):
        kept.put((0, n), session)
    assert [kept.take((0, n)) for n in range(3)] == [sessions[0], sessions[1], None]
    assert kept.take((0, 0)) is None


def test_small_canvas_and_odd_stride_are_refused() -> None:
    decoder = Decoder(transformer())
    with pytest.raises(ValueError, match="15 x 20 tokens is smaller than the window of 16 x 16"):
        paint_tokens(decoder, torch.zeros(1, 15, 20, dtype=torch.long), Chance())
    with pytest.raises(ValueError, match="stride 3; 1 or 8"):
        paint_tokens(decoder, torch.zeros(1, 16, 20, dtype=torch.long), Chance(), stride=3)
