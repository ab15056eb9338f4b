"""Passes of fixed shape, which a GPU replays, draw the tokens that other passes draw; here without a recording."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from golden_models import transformer
from torch import Tensor

from generate.decoding import Decoder
from generate.painting import Chance, Given, Guidance, paint_tokens
from generate.replay import Rooms

CHANCE = Chance(temperature=1.0, top_k=20, seed=3)


def drawn(seed: int, *size: int) -> Tensor:
    return torch.randint(64, size, generator=torch.Generator().manual_seed(seed))


def roomy() -> Decoder:
    """A decoder that works as on a GPU."""
    decoder = Decoder(transformer())
    decoder.rooms = Rooms(decoder)
    return decoder


@pytest.mark.parametrize("stride", [1, 8])
@pytest.mark.parametrize("alike", [True, False])
def test_fixed_passes_change_no_token(stride: int, alike: bool) -> None:
    masks = drawn(1, 2, 17, 25)
    if alike:  # paintings of one mask begin together
        masks[1] = masks[0]
    given, guidance = Given(drawn(2, 17, 25), drawn(3, 17, 25) < 20), Guidance(1.5, drawn(4, 1, 17, 25))
    usual, fixed = (
        paint_tokens(decoder, masks, CHANCE, stride, given=given, guidance=guidance)
        for decoder in (Decoder(transformer()), roomy())
    )
    assert torch.equal(fixed.tokens, usual.tokens)
    torch.testing.assert_close(fixed.log_likelihood, usual.log_likelihood, atol=1e-4, rtol=0)


def test_rooms_go_with_their_decoder() -> None:
    """At once, not when garbage is collected: they hold most of a GPU's memory, and recordings."""
    decoder = roomy()
    paint_tokens(decoder, drawn(1, 1, 16, 16), CHANCE)
    rooms = weakref.ref(decoder.rooms)
    gc.disable()
    try:
        del decoder
        assert rooms() is None
    finally:
        gc.enable()


def test_a_room_is_handed_on_and_nothing_of_the_last_session_is_seen() -> None:
    decoder = roomy()
    with torch.inference_mode():
        first = decoder.session(3)
        memory = first.cache.data_ptr()
        first.feed(drawn(1, 3, 500))
        first.look_ahead(drawn(2, 3, 11), [500] * 3)  # 16 run, behind the last place
        del first
        gc.collect()
        again, tokens = decoder.session(3), drawn(3, 3, 40)
        assert again.cache.data_ptr() == memory
        again.feed(tokens[:, :20])
        found = again.look_ahead(tokens[:, 20:], [20] * 3)
        usual = Decoder(transformer()).session(3)
        usual.feed(tokens[:, :20])
        torch.testing.assert_close(found, usual.look_ahead(tokens[:, 20:], [20]), atol=1e-5, rtol=0)
        assert decoder.session(3).cache.data_ptr() != memory  # that one is still in use
