"""How good the generator is, in figures: on paintings that it has not learnt from, and on new ones that it paints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from annotate.classes import UNLABELLED, ClassTable
from annotate.errors import UserError
from annotate.files import read_json, write_whole
from annotate.masks import Encoding, mask_encoding, mask_texts, read_mask, shift, unshift, write_mask
from annotate.paintings import load_painting, read_index
from annotate.progress import Stopwatch, note, progress
from annotate.workspace import Workspace
from generate import evaluate_page
from generate.data import Picture, held_out_keys, load_masks, load_pictures, scale, to_pixels
from generate.evaluate_config import EvaluateConfig
from generate.evaluation import (
    CodebookFigures,
    EvaluateResult,
    Fidelity,
    Likelihood,
    Originality,
    Reconstruction,
)
from generate.likelihood import even_windows, nats_a_token
from generate.originality import Crop, Neighbour, copy_threshold, cut, grid_crops, nearest_crops
from generate.perceptual import PerceptualLoss, find_perceptual
from generate.presets import TransformerSettings
from generate.sample import Models, load_models, sample
from generate.sample_config import SampleConfig
from generate.tokens import Tokens, cut_to_tokens
from generate.wasserstein import sliced_wasserstein
from segment.convert import SOURCE
from segment.device import choose_device
from segment.model import WEIGHTS as DEEPLAB_WEIGHTS
from segment.model import Segmenter, load
from segment.predict import predict_map
from segment.scores import Scores, confusion, score

ENCODED = 40  # paintings learnt from that measure the use of the codebooks
COPIES = 64  # planted copies that say what a copy looks like through the codes

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Painted:
    """A new painting, and the held-out one whose mask was asked for."""

    name: str
    pixels: Pixels
    mask: Pixels  # (H, W) shifted ids
    original: Picture


def evaluate(workspace: Workspace, config: EvaluateConfig, device: str = "auto") -> EvaluateResult:
    """Measure everything, write reports/generate-evaluate.html and .json; paintings made before are not made again.

    Raises:
        UserError: no models, no held-out paintings, a true mask or VGG16 weights that are missing or do not fit.
    """
    watch, place = Stopwatch(), choose_device(device)
    lpips = find_perceptual(config.perceptual, "LPIPS is not measured")  # before the long work
    models = load_models(workspace, place)
    side = models.transformer.config.window
    crop = side * models.painting_codes.config.downsampling  # pixels of a window
    held, learnt = _pictures(workspace, models, config, crop)
    tokens = _tokens(held, models, side, device)
    rebuilt = [_decoded(models, one) for one in tokens]
    originals = [_cut_like(painting.read(), back) for (painting, _), back in zip(held, rebuilt, strict=True)]
    known = _tokens(learnt[:ENCODED], models, side, device)
    painted = _paint(workspace, held[: config.masks], config, device, models)
    learnt_pictures = [painting for painting, _ in learnt]
    fresh = [one.pixels for one in painted]
    fidelity, seen = _fidelity(workspace, painted, config, place)
    neighbours, originality = _originality(painted, held, rebuilt, learnt_pictures, known, models, crop)
    result = EvaluateResult(
        report=str(workspace.reports / "generate-evaluate.html"),
        samples=len(painted),
        reconstruction=_reconstruction(originals, rebuilt, lpips),
        masks=_masks_kept(held, tokens, models, workspace.settings().classes),
        painting_codebook=_codebook(known + tokens, 1, models.painting_codes.config.codebook_size),
        mask_codebook=_codebook(known + tokens, 0, models.mask_codes.config.codebook_size),
        likelihood=_likelihood(models, tokens, side),
        wasserstein=_wasserstein(
            [one.read() for one in learnt_pictures[:ENCODED]], fresh, originals, rebuilt
        ),
        fidelity=fidelity,
        originality=originality,
        seconds=watch.seconds(),
    )
    figures = asdict(result)
    if fidelity is not None:
        figures["fidelity"]["ratio"] = fidelity.ratio
    shown = [
        evaluate_page.Composition(
            one.name, unshift(one.mask), one.original.read(), one.pixels, seen.get(one.name)
        )
        for one in painted
    ]
    pairs = [_pair(one, painted, learnt_pictures, crop) for one in neighbours]
    rows = list(zip(originals, rebuilt, strict=True))
    page = evaluate_page.build(result, workspace.settings().classes, shown, rows, pairs)
    write_whole(Path(result.report), page)
    workspace.save_report("generate-evaluate", figures)
    return result


def _pictures(
    workspace: Workspace, models: Models, config: EvaluateConfig, crop: int
) -> tuple[list[tuple[Picture, Picture]], list[tuple[Picture, Picture]]]:
    """Pairs of painting and mask, scaled as in training: held out, and learnt from."""
    about = read_json(workspace.model("transformer") / "config.json")
    smallest = config.smallest_side
    if smallest is None:
        smallest = int(about.get("train", {}).get("smallest_side", 0))  # an imported model does not say
    masks = load_masks(workspace, smallest, crop, models.mask_codes.config.in_channels)
    by_key = {one.key: one for one in load_pictures(workspace, smallest, crop)}
    kept = held_out_keys(workspace)
    held = [(by_key[one.key], one) for one in masks if one.key in kept]
    learnt = [(by_key[one.key], one) for one in masks if one.key not in kept]
    if not held or not learnt:
        raise UserError(
            f"{workspace.masks('shifted')}: {len(held)} paintings are held out and {len(learnt)} learnt from; "
            "run `tool segment convert --held-out 0.1` and train again"
        )
    if config.truth is not None:
        sizes = {key: one.size for key, one in read_index(workspace).items()}
        held = [
            (one, _true_mask(config, one, sizes[one.key], models.mask_codes.config.in_channels))
            for one, _ in held
        ]
    return held, learnt


def _true_mask(config: EvaluateConfig, painting: Picture, size: tuple[int, int], n_labels: int) -> Picture:
    """TRUTH/KEY.png in either encoding, as shifted ids, scaled like its painting."""
    assert config.truth is not None
    path = config.truth / f"{painting.key}.png"
    foreign = {"raw": Encoding.RAW, "shifted": Encoding.SHIFTED}.get(config.encoding or "")
    said = mask_encoding(path) or foreign or Encoding.RAW
    ids = read_mask(path, said, foreign or Encoding.RAW)
    if said is Encoding.RAW:
        ids = shift(ids, n_labels)
    if ids.shape != size:
        raise UserError(
            f"{path}: the mask is {ids.shape[0]} x {ids.shape[1]}, its painting {size[0]} x {size[1]}"
        )
    scaled = scale(ids, painting.size, smooth=False)
    return Picture(painting.key, painting.size, "", lambda: scaled)


def _tokens(
    pairs: Sequence[tuple[Picture, Picture]], models: Models, window: int, device: str
) -> list[Tokens]:
    """One unshifted view of each, with the mask tokens of a canvas about which nothing is said."""
    plain = TransformerSettings(views=1, flip=False, window=window, open_all=1.0)
    return cut_to_tokens(pairs, models.painting_codes, models.mask_codes, plain, device)


@torch.no_grad()
def _decoded(models: Models, tokens: Tokens) -> Pixels:
    """A painting as its tokens have it, (H, W, 3), cut to whole tokens."""
    place = models.painting_codes.quantize.embedding.weight.device
    image = models.painting_codes.decode_indices(tokens.views[0][1][None].to(place))[0]
    return np.ascontiguousarray(to_pixels(image).permute(1, 2, 0).cpu().numpy())


def _cut_like(pixels: Pixels, other: Pixels) -> Pixels:
    return pixels[: other.shape[0], : other.shape[1]]


def _paint(
    workspace: Workspace,
    held: Sequence[tuple[Picture, Picture]],
    config: EvaluateConfig,
    device: str,
    models: Models,
) -> list[Painted]:
    """New paintings from held-out masks, into samples/evaluate."""
    folder = workspace.samples / "evaluate"
    painted = []
    for original, mask in held:
        ids = mask.read()
        path = folder / "masks" / f"{original.key}.png"
        write_mask(path, ids, Encoding.SHIFTED)
        asked = SampleConfig(
            mask=str(path),
            count=config.samples,
            temperature=config.temperature,
            top_k=config.top_k,
            guidance=config.guidance,
            seed=config.seed,
            out=folder,
            check=False,  # these masks are the workspace's own
        )
        for one in sample(workspace, asked, device, models).samples:
            made = Path(one.path)
            painted.append(Painted(made.stem, load_painting(made), ids, original))
    return painted


def _reconstruction(
    originals: Sequence[Pixels], rebuilt: Sequence[Pixels], lpips: PerceptualLoss | None
) -> Reconstruction:
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    psnr, ssim, far = [], [], []
    for a, b in zip(originals, rebuilt, strict=True):
        psnr.append(float(peak_signal_noise_ratio(a, b)))
        ssim.append(float(structural_similarity(a, b, channel_axis=2, gaussian_weights=True, sigma=1.5)))
        if lpips is not None:
            x, y = (torch.from_numpy(one.copy()).permute(2, 0, 1)[None] / 127.5 - 1 for one in (a, b))
            with torch.no_grad():
                far.append(float(lpips(y, x)))
    mean = (float(np.mean(one)) if one else None for one in (psnr, ssim, far))
    return Reconstruction(len(originals), next(mean) or 0.0, next(mean) or 0.0, next(mean))


@torch.no_grad()
def _masks_kept(
    held: Sequence[tuple[Picture, Picture]], tokens: Sequence[Tokens], models: Models, classes: ClassTable
) -> Scores:
    """What the mask codes keep of each class: what they lose, nobody can compose with."""
    index = np.full(256, UNLABELLED, np.uint8)  # of a shifted id
    index[np.asarray(classes.ids) + 1] = np.arange(len(classes))
    place = models.mask_codes.quantize.embedding.weight.device
    matrix = np.zeros((len(classes), len(classes) + 1), np.int64)
    for (_, mask), one in zip(held, tokens, strict=True):
        logits = models.mask_codes.decode_indices(one.views[0][0][None].to(place))  # (1, n_labels, H, W)
        said = logits[0].argmax(0).to(torch.uint8).cpu().numpy()
        matrix += confusion(index[_cut_like(mask.read(), said)], index[said], len(classes))
    return score(matrix, classes.names)


def _codebook(tokens: Sequence[Tokens], row: int, size: int) -> CodebookFigures:
    """Use over whole paintings; `row` 0 is the mask's tokens, 1 the painting's."""
    counts = torch.bincount(torch.cat([one.views[0][row].flatten() for one in tokens]), minlength=size)
    share = counts / counts.sum()
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    return CodebookFigures(size, int((counts > 0).sum()), float(entropy.exp()))


def _likelihood(models: Models, tokens: Sequence[Tokens], side: int) -> Likelihood:
    windows = even_windows(
        [torch.cat([one.views[0], one.opened[0][1:2]]) for one in tokens], side
    )  # (N, 3, n)
    asked, drawn, blank = windows.unbind(1)
    nats = [nats_a_token(models.transformer, mask, drawn) for mask in (asked, blank)]
    return Likelihood(nats[0] / math.log(2), nats[1] / math.log(2), len(windows))


def _wasserstein(
    learnt: Sequence[Pixels], fresh: Sequence[Pixels], held: Sequence[Pixels], rebuilt: Sequence[Pixels]
) -> dict[str, list[float]]:
    sets = {"new paintings": fresh, "held-out paintings": held, "held-out, through the codes": rebuilt}
    return {name: sliced_wasserstein(learnt, some) for name, some in sets.items()}


def _fidelity(
    workspace: Workspace, painted: Sequence[Painted], config: EvaluateConfig, place: torch.device
) -> tuple[Fidelity | None, dict[str, Pixels]]:
    """The figures, and what the DeepLab sees in each new painting (raw ids)."""
    if not (workspace.model("deeplab") / DEEPLAB_WEIGHTS).exists():
        note("no DeepLab here: composition fidelity is not measured (`tool segment train`)")
        return None, {}
    segmenter = load(workspace, place)
    count = len(segmenter.classes)
    counts = {name: np.zeros((count, count + 1), np.int64) for name in ("samples", "paintings")}
    seen: dict[str, Pixels] = {}
    with progress("Looking at the new paintings", len(painted)) as advance:
        for one in painted:
            counts["samples"] += _seen(segmenter, one.pixels, one.mask, seen, one.name)
            counts["paintings"] += _seen(segmenter, one.original.read(), one.mask)
            advance()
    keys = {one.original.key for one in painted} if config.truth is None else set()
    labelled = sum(mask_texts(workspace.mask("shifted", key)).get(SOURCE) == "pseudo" for key in keys)
    names = segmenter.classes.names
    found = Fidelity(score(counts["samples"], names), score(counts["paintings"], names), labelled)
    return found, seen


def _seen(
    segmenter: Segmenter,
    pixels: Pixels,
    mask: Pixels,
    keep: dict[str, Pixels] | None = None,
    name: str = "",
) -> NDArray[np.int64]:
    """Confusion of a mask with what is seen in a painting; unlabelled pixels of the mask do not count."""
    found, _ = predict_map(segmenter, pixels)
    if keep is not None:
        keep[name] = segmenter.classes.to_raw(found)
    return confusion(segmenter.classes.to_index(unshift(mask)), found, len(segmenter.classes))


def _originality(
    painted: Sequence[Painted],
    held: Sequence[tuple[Picture, Picture]],
    rebuilt: Sequence[Pixels],
    learnt: Sequence[Picture],
    known: Sequence[Tokens],
    models: Models,
    crop: int,
) -> tuple[list[Neighbour], Originality]:
    """The nearest crop of each new painting, nearest first, and the figures.

    Held-out paintings and planted copies go through the codes first, as everything that is sampled does.
    """
    chance = np.random.default_rng(0)
    queries: dict[str, list[tuple[Crop, Pixels]]] = {"samples": [], "held out": [], "copies": []}
    for one in painted:
        queries["samples"] += [
            (spot, cut(one.pixels, spot, crop)) for spot in grid_crops(one.name, one.pixels, crop)
        ]
    for (painting, _), pixels in zip(held, rebuilt, strict=True):
        spots = grid_crops(painting.key, pixels, crop)
        queries["held out"] += [(spot, cut(pixels, spot, crop)) for spot in spots]
    for number in range(COPIES):
        tokens = known[number % len(known)]
        pixels = _decoded(models, tokens) if number < len(known) else pixels
        top, left = (int(chance.integers(length - crop + 1)) for length in pixels.shape[:2])
        spot = Crop(tokens.key, top, left, mirrored=bool(chance.integers(2)))
        queries["copies"].append((spot, cut(pixels, spot, crop)))
    every = [one for some in queries.values() for one in some]
    found = nearest_crops(every, ((one.key, one.read()) for one in learnt), crop, len(learnt))
    ends = np.cumsum([len(some) for some in queries.values()])
    samples, held_out, copies = found[: ends[0]], found[ends[0] : ends[1]], found[ends[1] :]
    threshold = copy_threshold(copies, held_out)
    near = {name: _least(some) for name, some in (("samples", samples), ("held", held_out))}
    figures = Originality(
        {name: one.distance for name, one in near["samples"].items()},
        {name: one.distance for name, one in near["held"].items()},
        threshold,
        tuple(name for name, one in near["samples"].items() if one.distance < threshold.value),
    )
    return sorted(near["samples"].values(), key=lambda one: one.distance), figures


def _least(neighbours: Sequence[Neighbour]) -> dict[str, Neighbour]:
    """Of each painting the crop that lies nearest to what was learnt from."""
    least: dict[str, Neighbour] = {}
    for one in neighbours:
        if one.crop.key not in least or one.distance < least[one.crop.key].distance:
            least[one.crop.key] = one
    return least


def _pair(
    one: Neighbour, painted: Sequence[Painted], learnt: Sequence[Picture], crop: int
) -> evaluate_page.Pair:
    sampled = next(some for some in painted if some.name == one.crop.key)
    source = next(some for some in learnt if some.key == one.nearest.key)
    return evaluate_page.Pair(one, cut(sampled.pixels, one.crop, crop), cut(source.read(), one.nearest, crop))
