"""Hand and pseudo masks to 182-class shifted masks, with the lists and the manifest that go with them.

`train.txt` and `val.txt` name one mask a line, relative to masks/shifted: `KEY.png`. taming-transformers' own
data classes read them with the folder of the paintings as `data_root` (where these are PNGs, or after `.png`
is replaced by their suffix), masks/shifted as `segmentation_root`, and `shift_segmentation=False`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from annotate.errors import UserError
from annotate.files import write_json, write_whole
from annotate.masks import Encoding, mask_texts, read_mask, shift, write_mask
from annotate.paintings import Painting, read_index
from annotate.progress import Stopwatch, progress
from annotate.workspace import Workspace
from segment.config import ConvertConfig
from segment.layout import write_layout

SOURCE, MADE_FROM = "source", "made-from"  # text chunks: hand or pseudo, and a hash of that file


@dataclass(frozen=True)
class ConvertResult:
    """What one conversion did."""

    written: int
    unchanged: int
    removed: int  # shifted masks whose source or painting is gone
    hand: int
    pseudo: int
    without: int  # paintings that have neither
    held_out: int  # of val.txt
    seconds: float
    problems: tuple[str, ...]  # one line for each mask that was left out


def convert(workspace: Workspace, config: ConvertConfig) -> ConvertResult:
    """Write masks/shifted/KEY.png for every painting with a mask; a hand mask wins over a pseudo mask.

    Only what changed is written again.

    Raises:
        UserError: no masks at all, or an id without a channel; the line names the file and the n_labels.
    """
    watch = Stopwatch()
    index = read_index(workspace)
    sources = _sources(workspace, index)
    if not sources:
        raise UserError(
            f"{workspace.root / 'masks'}: no masks to convert; run `tool annotate pull` "
            "and `tool segment pseudo-label`"
        )
    written, problems = 0, []
    with progress("Shifting the masks", len(sources)) as advance:
        for key, source in sources.items():
            try:
                written += _shift(workspace, index[key], source, config.n_labels)
            except _UnfitError as error:
                problems.append(error.message)
                _remove(workspace.mask("shifted", key))
            advance()
    left_out = {key for key in sources if not workspace.mask("shifted", key).exists()}
    done = {key: source for key, source in sources.items() if key not in left_out}
    removed = _remove_stale(workspace, done)
    held_out = held_out_share(done, config)
    _write_lists(workspace, index, done, held_out, config)
    if config.layout == "taming":
        write_layout(workspace, [index[key] for key in done], held_out, config.n_labels)
    hand = sum(source == "hand" for source in done.values())
    return ConvertResult(
        written,
        len(done) - written,
        removed,
        hand,
        len(done) - hand,
        len(index) - len(sources),
        len(held_out),
        watch.seconds(),
        tuple(problems),
    )


def held_out_share(keys: Iterable[str], config: ConvertConfig) -> set[str]:
    """The keys of val.txt. Which ones depends on each key and the seed, so that few change when paintings come."""
    order = sorted(keys, key=lambda key: hashlib.sha256(f"{config.seed}:{key}".encode()).digest())
    return set(order[: round(len(order) * config.held_out)])


class _UnfitError(UserError):
    """A mask that cannot be used, while the others can."""


def _sources(workspace: Workspace, index: dict[str, Painting]) -> dict[str, str]:
    """`hand` or `pseudo` of every painting that has one, by key."""
    pseudo = dict.fromkeys(workspace.keys_with_mask("pseudo"), "pseudo")
    found = pseudo | dict.fromkeys(workspace.keys_with_mask("hand"), "hand")
    return {key: found[key] for key in sorted(found) if key in index}


def _shift(workspace: Workspace, painting: Painting, source: str, n_labels: int) -> bool:
    """Write one shifted mask; False where the one on disk is of the same source."""
    path, target = workspace.mask(source, painting.key), workspace.mask("shifted", painting.key)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _UnfitError(f"{path}: cannot be read ({error.strerror}); mend that, or delete it") from error
    made_from = hashlib.sha256(content + f"{n_labels} {painting.size}".encode()).hexdigest()[:16]
    texts = _texts(target)
    if texts.get(SOURCE) == source and texts.get(MADE_FROM) == made_from:
        return False
    try:
        raw = read_mask(path, Encoding.RAW)
    except UserError as error:
        raise _UnfitError(error.message) from error
    if raw.shape != painting.size:
        size = f"{painting.size[0]} x {painting.size[1]}"
        raise _UnfitError(
            f"{path}: the mask is {raw.shape[0]} x {raw.shape[1]}, its painting {size}; make it again"
        )
    try:
        shifted = shift(raw, n_labels)
    except UserError as error:
        raise UserError(f"{path}: {error.message}") from error
    write_mask(target, shifted, Encoding.SHIFTED, {SOURCE: source, MADE_FROM: made_from})
    return True


def _texts(path: Path) -> dict[str, str]:
    """A mask's text chunks; none of one that is not there or damaged, which is then written again."""
    try:
        return mask_texts(path) if path.exists() else {}
    except UserError:
        return {}


def _remove_stale(workspace: Workspace, done: dict[str, str]) -> int:
    """Delete the shifted masks that an earlier conversion wrote and that nothing stands behind any more."""
    removed = 0
    for key in workspace.keys_with_mask("shifted"):
        path = workspace.mask("shifted", key)
        if key not in done and MADE_FROM in _texts(path):
            _remove(path)
            removed += 1
    return removed


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be removed ({error.strerror}); mend the permissions and run the command again"
        ) from error


def _write_lists(
    workspace: Workspace,
    index: dict[str, Painting],
    done: dict[str, str],
    held_out: set[str],
    config: ConvertConfig,
) -> None:
    folder = workspace.masks("shifted")
    for name, keys in (("train", [key for key in done if key not in held_out]), ("val", sorted(held_out))):
        write_whole(folder / f"{name}.txt", "".join(f"{key}.png\n" for key in keys))
    masks = {
        key: {
            "source": source,
            "size": list(index[key].size),
            "painting": index[key].path,
            "list": "val" if key in held_out else "train",
        }
        for key, source in done.items()
    }
    manifest = {
        "encoding": Encoding.SHIFTED.value,
        "n_labels": config.n_labels,
        "shift_segmentation": False,  # what taming-transformers' loader must be told: it is done already
        "unlabelled": 0,
        "classes": [row | {"shifted": row["id"] + 1} for row in workspace.settings().classes.as_list()],
        "masks": masks,
    }
    write_json(folder / "manifest.json", manifest)
