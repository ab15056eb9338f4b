"""Pseudo-labels: a mask and a confidence map for every painting that no person annotated.

Paintings are read ahead and masks written behind while the network works, and a few of each exist at a time,
however many paintings there are. Several processes under torchrun or SLURM share the paintings out.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from annotate.classes import UNLABELLED
from annotate.errors import UserError
from annotate.files import sha256, whole_file
from annotate.masks import CHUNK, MEAN_CONFIDENCE, Encoding, mask_texts, read_levels, write_mask
from annotate.paintings import Painting, load_painting, read_index
from annotate.progress import Stopwatch, note, progress
from annotate.workspace import Workspace
from segment.calibrate import LEVELS
from segment.config import LabelConfig
from segment.crew import Crew, join, own_device
from segment.device import choose_device, memory_told
from segment.model import Segmenter, load, saved_config, weights_digest
from segment.predict import predict_map, to_levels
from segment.thresholds import learnt_thresholds

MADE_BY = "labelled-by"  # text chunk: what the mask was made by, and from
BELOW = "below-threshold"  # text chunk: share of the pixels
AHEAD = 3  # paintings read before their turn, and masks that wait to be written
REPORT = "segment-pseudo-label"


@dataclass(frozen=True)
class LabelResult:
    """What one labelling did."""

    labelled: int  # now
    there: int  # made by the same model and settings before
    hand: int  # annotated by a person, left alone
    mean_confidence: float  # over the paintings labelled by this model, 0 to 1
    unlabelled: float  # share of their pixels below the threshold
    thresholds: dict[str, float]  # of each class; a pixel that is less sure is unlabelled
    settings: dict[str, object]  # of this labelling
    ranking: tuple[str, ...]  # keys, the least sure first
    seconds: float
    problems: tuple[str, ...]  # one line for each painting that was left out

    def text(self) -> str:
        sure = f"; mean confidence {self.mean_confidence:.2f}" if self.ranking else ""
        limits = "" if not self.unlabelled else f"; {100 * self.unlabelled:.1f} % too unsure, left unlabelled"
        return (
            f"{self.labelled} labelled now, {self.there} there, {self.hand} annotated by hand"
            f"{sure}{limits}\nthen: tool segment convert"
        )


@dataclass(frozen=True)
class _Labelled:
    """One painting's pseudo mask, as its text chunks tell."""

    key: str
    confidence: float  # mean
    below: float  # share below the threshold
    fresh: bool  # made now


def pseudo_label(workspace: Workspace, config: LabelConfig, device: str = "auto") -> LabelResult:
    """Write masks/pseudo/KEY.png and masks/confidence/KEY.png for every painting without a hand mask.

    A killed run goes on; masks of another model, other settings or another painting are made again, and
    damaged ones too. Several processes each take their share, and all of them get the same result.

    Raises:
        UserError: no paintings, no model, a model of other classes, or no such device.
    """
    watch = Stopwatch()
    crew = join()
    index = read_index(workspace)
    segmenter = load(workspace, own_device(choose_device(device), crew))
    thresholds = chosen_thresholds(workspace, config)
    hand = set(workspace.keys_with_mask("hand"))
    rest = [one for key, one in index.items() if key not in hand]
    mine, problems = _label_all(workspace, crew.share(rest), segmenter, config, thresholds, crew)
    every = [one for part in crew.gather(mine) for one in part]
    lines = [line for part in crew.gather(problems) for line in part]
    labelled = sum(one.fresh for one in every)
    levels = (thresholds / (LEVELS - 1)).tolist()
    return LabelResult(
        labelled,
        len(every) - labelled,
        len(index) - len(rest),
        float(np.mean([one.confidence for one in every])) if every else 0.0,
        float(np.mean([one.below for one in every])) if every else 0.0,
        dict(zip(segmenter.classes.names, levels, strict=True)),
        asdict(config),
        tuple(one.key for one in sorted(every, key=lambda one: (one.confidence, one.key))),
        watch.seconds(),
        tuple(lines),
    )


def chosen_thresholds(workspace: Workspace, config: LabelConfig) -> NDArray[np.int64]:
    """The levels (K,) of confidence below which a pixel is unsure: the given one, else what was learnt; or 0."""
    classes = workspace.settings().classes
    if config.fill:
        return np.zeros(len(classes), np.int64)
    if config.threshold is not None:
        return np.full(len(classes), round(config.threshold * (LEVELS - 1)), np.int64)
    mark = str((saved_config(workspace) or {}).get("fingerprint"))
    found = learnt_thresholds(workspace, mark, classes)
    return np.zeros(len(classes), np.int64) if found is None else found


def current_labels(workspace: Workspace) -> tuple[list[str], NDArray[np.int64]]:
    """Keys of the pseudo masks that the present model made with the last settings, and their thresholds (K,)."""
    names = workspace.settings().classes.names
    said = (workspace.report(REPORT) or {}).get("thresholds")
    told = said if isinstance(said, dict) and list(said) == names else dict.fromkeys(names, 0.0)
    thresholds = np.array([round(float(one) * (LEVELS - 1)) for one in told.values()], np.int64)
    digest = weights_digest(workspace)
    there = read_index(workspace).keys() - set(workspace.keys_with_mask("hand"))
    keys = []
    for key in workspace.keys_with_mask("pseudo"):
        try:
            current = mask_texts(workspace.mask("pseudo", key)).get(MADE_BY, "").startswith(f"{digest}-")
        except UserError as error:
            note(f"left out: {error.message}")
            continue
        if current and key in there:
            keys.append(key)
    return keys, thresholds


def read_confidence(workspace: Workspace, key: str, size: tuple[int, ...]) -> NDArray[np.uint8]:
    """A painting's confidence map, (H, W) levels.

    Raises:
        UserError: no map, a damaged one, or one of another size than its mask.
    """
    path = workspace.mask("confidence", key)
    levels = read_levels(path)
    if levels.shape != size:
        raise UserError(f"{path}: has another size than its mask; run `tool segment pseudo-label` again")
    return levels


def _label_all(
    workspace: Workspace,
    paintings: Sequence[Painting],
    segmenter: Segmenter,
    config: LabelConfig,
    thresholds: NDArray[np.int64],
    crew: Crew,
) -> tuple[list[_Labelled], list[str]]:
    """Label what is not labelled yet; every painting's outcome, and the problems."""
    found: list[_Labelled] = []
    problems: list[str] = []
    todo = []
    for painting in paintings:
        made_by = _made_by(segmenter.digest, painting, config, thresholds)
        there = _done(workspace, painting, made_by)
        if there is None:
            todo.append((painting, made_by))
        else:
            found.append(there)
    title = "Labelling" if crew.size == 1 else f"Labelling, process {crew.rank + 1} of {crew.size}"
    with ThreadPoolExecutor(2) as pool, progress(title, len(paintings)) as advance:
        advance(len(found))
        writing: deque[Future[_Labelled]] = deque()
        for painting, made_by, pixels in _read_ahead(workspace, todo, pool):
            try:
                if isinstance(pixels, UserError):
                    raise pixels
                with memory_told(segmenter.device, f"lower --tile (now {config.tile}) for {painting.path}"):
                    said, confidence = predict_map(segmenter, pixels, config)
                raw = segmenter.classes.to_raw(said)
                limit = thresholds[said]
                writing.append(pool.submit(_write, workspace, painting, raw, confidence, limit, made_by))
            except UserError as error:
                problems.append(error.message)
            while len(writing) > AHEAD:
                found.append(writing.popleft().result())
            advance(1, note=painting.key)
        found += [one.result() for one in writing]
    return found, problems


def _read_ahead(
    workspace: Workspace, todo: Sequence[tuple[Painting, str]], pool: ThreadPoolExecutor
) -> Iterator[tuple[Painting, str, NDArray[np.uint8] | UserError]]:
    """The paintings in order, each read before it is asked for; in place of one that cannot be used, why."""
    reading: deque[tuple[Painting, str, Future[NDArray[np.uint8] | UserError]]] = deque()
    waiting = iter(todo)
    while True:
        while len(reading) < AHEAD and (following := next(waiting, None)) is not None:
            reading.append((*following, pool.submit(_read, workspace, following[0])))
        if not reading:
            return
        painting, made_by, pixels = reading.popleft()
        yield painting, made_by, pixels.result()


def _read(workspace: Workspace, painting: Painting) -> NDArray[np.uint8] | UserError:
    try:
        image = load_painting(painting.file(workspace))
    except UserError as error:
        return error
    if sha256(painting.file(workspace)) != painting.sha256:
        return UserError(f"{painting.path}: was changed since it was pushed; push the folder again")
    return image


def _changed(file: Path, painting: Painting, mask: Path) -> bool:
    """Whether the painting's file is another one since its mask was made; only a newer file is read."""
    try:
        return file.stat().st_mtime > mask.stat().st_mtime and sha256(file) != painting.sha256
    except OSError:
        return False  # gone: its mask stays


def _write(
    workspace: Workspace,
    painting: Painting,
    raw: NDArray[np.uint8],
    confidence: NDArray[np.float32],
    limit: NDArray[np.int64],
    made_by: str,
) -> _Labelled:
    """Write both files of one painting; `limit` (H, W) is the level that each pixel has to reach."""
    levels = to_levels(confidence)
    below = levels < limit
    raw[below] = UNLABELLED
    mean, gap = float(confidence.mean()), float(below.mean())
    about = {MADE_BY: made_by, MEAN_CONFIDENCE: f"{mean:.6f}", BELOW: f"{gap:.6f}"}
    _write_confidence(workspace.mask("confidence", painting.key), levels)
    write_mask(workspace.mask("pseudo", painting.key), raw, Encoding.RAW, about)  # last: it says "done"
    return _Labelled(painting.key, mean, gap, True)


def _write_confidence(path: Path, levels: NDArray[np.uint8]) -> None:
    """(H, W) uint8, confidence * 255, as a PNG that says that it is no mask."""
    info = PngImagePlugin.PngInfo()
    info.add_text(CHUNK, "confidence")
    with whole_file(path) as temporary:
        # smooth, so the lightest compression does: a fifth of the default's time
        Image.fromarray(levels, mode="L").save(temporary, format="PNG", pnginfo=info, compress_level=1)


def _made_by(digest: str, painting: Painting, config: LabelConfig, thresholds: NDArray[np.int64]) -> str:
    """What a pseudo mask depends on: the model, and a hash of the settings and the painting."""
    text = json.dumps([asdict(config), thresholds.tolist(), painting.sha256])
    return f"{digest}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _done(workspace: Workspace, painting: Painting, made_by: str) -> _Labelled | None:
    """The mask that this very model and setting made, if it is there and whole."""
    path = workspace.mask("pseudo", painting.key)
    if not path.exists() or not workspace.mask("confidence", painting.key).exists():
        return None
    if _changed(painting.file(workspace), painting, path):
        return None
    try:
        texts = mask_texts(path)
        mask_texts(workspace.mask("confidence", painting.key))
        if texts.get(MADE_BY) == made_by:
            return _Labelled(painting.key, float(texts[MEAN_CONFIDENCE]), float(texts[BELOW]), False)
    except (UserError, KeyError, ValueError):
        pass  # damaged: it is made again
    return None
