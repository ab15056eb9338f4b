"""Self-training: the paintings without a hand mask, labelled by the model on the way and learnt from."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional as T

from annotate.classes import UNLABELLED
from annotate.errors import UserError
from annotate.files import whole_file, write_whole
from annotate.paintings import Painting, load_painting
from annotate.progress import note, progress
from annotate.workspace import Workspace
from segment.config import LabelConfig
from segment.data import Sample, scaled_size, to_tensor
from segment.model import Segmenter
from segment.predict import predict_map

FOLDER = "rest"


@dataclass(frozen=True)
class Rest:
    """Paintings without a hand mask, at the size that the network sees, as files of NumPy arrays.

    Crops are cut from the files as they lie on the disk, so memory does not grow with their number.
    """

    folder: Path
    keys: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def sample(self, n: int, round_: int) -> Sample:
        """Painting n with the labels of a round, from 1. Only what is cut out of it is read."""
        key = self.keys[n]
        pixels = np.load(self._pixels(key), mmap_mode="c")  # (3, h, w)
        labels = np.load(self._labels(key, round_), mmap_mode="c")  # (h, w)
        return Sample(key, torch.from_numpy(pixels), torch.from_numpy(labels), "")

    def label(self, segmenter: Segmenter, round_: int, sure: float) -> None:
        """Label every painting for a round; labels that are there stay, for the same model made them.

        Processes that train together share the paintings out, and wait for each other.
        """
        config = LabelConfig()
        together = dist.is_available() and dist.is_initialized()
        mine = self.keys[dist.get_rank() :: dist.get_world_size()] if together else self.keys
        with progress(f"Labelling for round {round_}", len(mine)) as advance:
            for key in mine:
                path = self._labels(key, round_)
                if not path.exists():
                    image = np.ascontiguousarray(np.load(self._pixels(key)).transpose(1, 2, 0))
                    labels, confidence = predict_map(segmenter, image, config)
                    labels[confidence < sure] = UNLABELLED
                    _write(path, labels)
                advance()
        if together:
            dist.barrier()

    def labelled(self, round_: int) -> bool:
        """Have all paintings labels of this round."""
        return all(self._labels(key, round_).exists() for key in self.keys)

    def _pixels(self, key: str) -> Path:
        return self.folder / "pixels" / f"{key}.npy"

    def _labels(self, key: str, round_: int) -> Path:
        return self.folder / f"round-{round_}" / f"{key}.npy"


def prepare(
    workspace: Workspace, paintings: Sequence[Painting], folder: Path, mark: str, smallest_side: int
) -> Rest:
    """Scale the paintings into files under `folder`; those of an earlier try with the same `mark` stay."""
    marked = folder / "mark"
    if not marked.exists() or marked.read_text() != mark:
        shutil.rmtree(folder, ignore_errors=True)
        write_whole(marked, mark)
    keys = []
    with progress("Loading the other paintings", len(paintings)) as advance:
        for one in paintings:
            path = folder / "pixels" / f"{one.key}.npy"
            try:
                if not path.exists():
                    pixels = to_tensor(load_painting(one.file(workspace)))
                    size = scaled_size(pixels.shape[1:], smallest_side)
                    _write(path, T.resize(pixels, list(size), antialias=True).numpy())
                keys.append(one.key)
            except UserError as error:
                note(f"left out: {error.message}")
            advance()
    return Rest(folder, tuple(keys))


def _write(path: Path, values: NDArray[np.uint8]) -> None:
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, values)
