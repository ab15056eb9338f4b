"""Paintings and masks cut to tokens once, and the random windows of them that the transformer learns from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from annotate.progress import progress
from generate.conditioning import open_part, unconditional_tokens
from generate.data import Picture, to_image
from generate.memory import freed_memory_kept
from generate.presets import TransformerSettings
from generate.quantize import Quantized
from generate.vqgan import VQGAN
from segment.device import choose_device, has_fast_bfloat16

CHECKED = 64  # windows of the held-out paintings that measure the likelihood


@dataclass(frozen=True)
class Tokens:
    """One painting, cut to tokens in several shifts: each view a (2, h, w) int64 of mask and painting tokens.

    `opened` has a (3, h, w) for each shift: mask tokens with a part unlabelled, those of a mask that says nothing,
    and the painting's.
    """

    key: str
    views: tuple[Tensor, ...]
    opened: tuple[Tensor, ...] = ()


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """Random windows of random views; item `n` depends on `seed` and `n` alone.

    Args:
        paintings: their tokens.
        side: of a window, in tokens.
        open_part, open_all: shares of the windows whose mask is unlabelled in part, or altogether.
    """

    def __init__(
        self,
        paintings: Sequence[Tokens],
        side: int,
        seed: int,
        open_part: float = 0.0,
        open_all: float = 0.0,
    ) -> None:
        self.paintings, self.side, self.seed = paintings, side, seed
        self.open_part, self.open_all = open_part, open_all

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
        """Mask and painting tokens of item n, (side * side,) each."""
        around, place = divmod(n, len(self.paintings))
        order = np.random.default_rng((self.seed, 2, around)).permutation(len(self.paintings))
        chance = np.random.default_rng((self.seed, 3, n))
        painting = self.paintings[int(order[place])]
        number = int(chance.integers(len(painting.views)))
        view = painting.views[number]  # (2, h, w)
        drawn = float(np.random.default_rng((self.seed, 7, n)).random())
        if drawn < self.open_part + self.open_all:
            part, nothing, drawn_there = painting.opened[number % len(painting.opened)]
            view = torch.stack([part if drawn < self.open_part else nothing, drawn_there])
        return window(view, self.side, chance)


def window(view: Tensor, side: int, chance: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A random window of a (2, h, w) view: mask and painting tokens, (side * side,) each."""
    top = int(chance.integers(view.shape[1] - side + 1))
    left = int(chance.integers(view.shape[2] - side + 1))
    mask, painting = view[:, top : top + side, left : left + side].flatten(1).unbind(0)
    return mask, painting


def held_out_windows(paintings: Sequence[Tokens], side: int, seed: int) -> tuple[Tensor, Tensor]:
    """The same CHECKED windows every time, of the unshifted views: mask and painting tokens, (N, n) each."""
    chance = np.random.default_rng((seed, 4))
    drawn = [window(paintings[n % len(paintings)].views[0], side, chance) for n in range(CHECKED)]
    return torch.stack([mask for mask, _ in drawn]), torch.stack([painting for _, painting in drawn])


@torch.inference_mode()
def cut_to_tokens(
    pairs: Sequence[tuple[Picture, Picture]],
    painting_codes: VQGAN,
    mask_codes: VQGAN,
    config: TransformerSettings,
    device: str,
) -> list[Tokens]:
    """Tokens of every (painting, mask), once for the whole training.

    Each painting is cut as a whole, as a mask is when it is painted from, in `config.views` shifts of less than a
    token; the first is unshifted. With `config.flip` each shift is also mirrored. Where the config opens masks, each
    shift also gets the tokens of its mask with a random part unlabelled, and of one that says nothing.
    """
    where = choose_device(device)
    painting_codes.to(where), mask_codes.to(where)
    factor = painting_codes.config.downsampling
    side = config.window * factor
    chance = np.random.default_rng((config.seed, 5))
    opens = config.open_part + config.open_all > 0
    blank: dict[tuple[int, int], Tensor] = {}  # by size: masks that say nothing
    cut = []
    total = len(pairs) * config.views
    with (
        freed_memory_kept(where.type),
        progress("Cutting the paintings to tokens", total) as advance,
        torch.autocast(where.type, torch.bfloat16, enabled=has_fast_bfloat16(where)),
    ):
        for painting, mask in pairs:
            pixels, ids, views, opened = painting.read(), mask.read(), [], []
            for number in range(config.views):
                room = [min(factor, length - side + 1) for length in painting.size]
                top, left = (0, 0) if number == 0 else (int(chance.integers(one)) for one in room)
                ways = (False, True) if config.flip else (False,)
                shown, masks = (
                    [_shifted(one, top, left, factor, mirrored) for mirrored in ways] for one in (pixels, ids)
                )
                if opens:
                    masks.append(torch.from_numpy(open_part(masks[0].numpy(), chance)))
                drawn = _encoded(
                    painting_codes.encode, to_image(torch.stack(shown).permute(0, 3, 1, 2)), where
                )
                asked = _encoded(mask_codes.encode_mask, torch.stack(masks).long(), where)
                views += [torch.stack([asked[n], drawn[n]]) for n in range(len(ways))]
                if opens:
                    size = (asked.shape[1], asked.shape[2])
                    if size not in blank:
                        blank[size] = unconditional_tokens(mask_codes, size)[0].cpu()
                    opened.append(torch.stack([asked[-1], blank[size], drawn[0]]))
                advance()
            cut.append(Tokens(painting.key, tuple(views), tuple(opened)))
    return cut


def _encoded(encode: Callable[[Tensor], Quantized], batch: Tensor, where: torch.device) -> Tensor:
    """Tokens (B, h, w) on the CPU; a GPU encodes all at once, for which a CPU would only need more memory."""
    parts = torch.split(batch, 1 if where.type == "cpu" else len(batch))
    return torch.cat([encode(part.to(where)).indices.cpu() for part in parts])


def _shifted(pixels: NDArray[np.uint8], top: int, left: int, factor: int, mirrored: bool) -> Tensor:
    """From (top, left) as many whole tokens as fit."""
    height = (pixels.shape[0] - top) // factor * factor
    width = (pixels.shape[1] - left) // factor * factor
    part = pixels[top : top + height, left : left + width]
    return torch.from_numpy((part[:, ::-1] if mirrored else part).copy())
