"""Training and pseudo-labelling against the plain loop in the style of torchvision's references, on a CPU.

Both sides have DeepLabV3 with MobileNetV3 and auxiliary head, the same painter scenes of 1000 x 800 pixels scaled to a
smaller side of 512, and every core; they take turns, and the figures are medians.

Training: eight crops of 384 pixels a step, prepared in the training process. The plain loop is `train_one_epoch` of
pytorch/vision's references/segmentation with its `SegmentationPresetTrain`: float32, random scale, mirror and crop by
`torchvision.transforms.v2`, SGD, cross-entropy of both heads; its paintings are in memory, where its own data set would
read them from the disk. Ours is `segment.train.fit`, as the command runs it: bfloat16 where the processor multiplies it
in hardware, and with what it does beyond (colour, crops around rare classes, class balance, a running average of the
weights, a log); a state is saved every 50 steps, and a 50th of its time is counted in. Without bfloat16 it is the same in float32.

Labelling: the plain loop reads a painting, scales it, runs the network on it and on its mirror image, averages,
enlarges, takes the best class, and writes mask and confidence with Pillow's defaults, one painting after the other.
Ours is `tool segment pseudo-label` at its default settings. `other pixels` is where the two masks differ.
"""

from __future__ import annotations

import pkgutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large
from torchvision.transforms import v2

from annotate.classes import UNLABELLED, ClassTable
from annotate.masks import Encoding, read_mask, write_mask
from annotate.paintings import Painting, load_painting, read_index, scan, write_index
from annotate.workspace import Workspace
from demo.painter import paint
from segment.config import LabelConfig, TrainConfig
from segment.data import MEAN, STD, Sample, load_samples
from segment.label import pseudo_label
from segment.model import WEIGHTS
from segment.train import fit, train

HAND, REST = 8, 16
SIZE = (800, 1000)
CONFIG = TrainConfig(init="none", batch=8, crop=384, smallest_side=512, workers=0)
WARM, STEPS, TURNS = 2, 4, 3  # steps that do not count, steps that do, in each of the turns
CPU = torch.device("cpu")


def run() -> list[dict[str, object]]:
    with tempfile.TemporaryDirectory() as name:
        workspace = Workspace(Path(name))
        scenes(workspace)
        rows = training(load_samples(workspace, ClassTable(), CONFIG.smallest_side), Path(name) / "speed")
        train(workspace, replace(CONFIG, steps=120, crop=192, scale_low=0.3, lr=2e-3), "cpu")
        return [*rows, labelling(workspace)]


def scenes(workspace: Workspace) -> None:
    """Painter scenes enlarged to 1000 x 800; the first are annotated."""
    for number in range(HAND + REST):
        scene = paint(number, (256, 320))
        path = workspace.root / "paintings" / f"{number:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = SIZE[1], SIZE[0]
        Image.fromarray(scene.painting).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
        if number < HAND:
            ids = np.asarray(Image.fromarray(scene.ids).resize(size, Image.Resampling.NEAREST))
            write_mask(workspace.mask("hand", path.stem), ids, Encoding.RAW)
    write_index(workspace, scan(workspace.root / "paintings", workspace).paintings)


def training(samples: list[Sample], folder: Path) -> list[dict[str, object]]:
    """Crops a second of ours against the plain loop, as it comes and in float32."""
    taken: dict[str, list[float]] = {"plain": [], "ours": [], "float32": []}
    for turn in range(TURNS):
        taken["plain"] += plain_steps(samples)
        taken["ours"] += our_steps(samples, folder / f"{turn}")
        with mock.patch("segment.train.has_fast_bfloat16", return_value=False):
            taken["float32"] += our_steps(samples, folder / f"float32-{turn}")
    plain, ours, same = (CONFIG.batch / median(taken[name]) for name in ("plain", "ours", "float32"))
    return [
        _row("training, crops", plain, ours, ""),
        _row("training without bfloat16, crops", plain, same, ""),
    ]


def labelling(workspace: Workspace) -> dict[str, object]:
    """Paintings a second, and where the masks differ."""
    hand = set(workspace.keys_with_mask("hand"))
    rest = [one for key, one in read_index(workspace).items() if key not in hand]
    network = _plain_network()
    network.load_state_dict(load_file(workspace.model("deeplab") / WEIGHTS))
    network.eval()
    plain, ours = [], []
    for turn in range(TURNS + 1):  # the first does not count
        began = time.perf_counter()
        masks = {one.key: plain_mask(workspace, network, one) for one in rest}
        between = time.perf_counter()
        for one in rest:
            workspace.mask("pseudo", one.key).unlink(missing_ok=True)
        pseudo_label(workspace, LabelConfig(), "cpu")
        if turn:
            plain.append(between - began)
            ours.append(time.perf_counter() - between)
    wrong = [
        (read_mask(workspace.mask("pseudo", key), Encoding.RAW) != mask).mean() for key, mask in masks.items()
    ]
    differ = f"{100 * float(np.mean(wrong)):.3f} %"
    return _row("labelling, paintings", REST / median(plain), REST / median(ours), differ)


def _row(what: str, plain: float, ours: float, differ: str) -> dict[str, object]:
    return {
        "": what,
        "plain loop, a second": plain,
        "ours, a second": ours,
        "times": ours / plain,
        "other pixels": differ,
    }


class Reference(Dataset[tuple[Tensor, Tensor]]):
    """Paintings and class indices by torchvision's SegmentationPresetTrain."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples
        base, fill = CONFIG.smallest_side, {tv_tensors.Mask: UNLABELLED, "others": 0}
        self.change = v2.Compose(
            [
                v2.RandomResize(min_size=base // 2, max_size=2 * base),
                v2.RandomHorizontalFlip(0.5),
                v2.RandomCrop(CONFIG.crop, pad_if_needed=True, fill=fill),
                v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None}),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return (WARM + STEPS) * CONFIG.batch

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
        """(3, crop, crop) normalised, (crop, crop) int64."""
        one = self.samples[n % len(self.samples)]
        image, labels = self.change(tv_tensors.Image(one.pixels), tv_tensors.Mask(one.labels))
        return image.as_subclass(Tensor), labels.as_subclass(Tensor)


def plain_steps(samples: list[Sample]) -> list[float]:
    """Seconds of each step of the plain loop that counts.

    Source: pytorch/vision, references/segmentation/train.py, train_one_epoch and criterion.
    """
    net = _plain_network().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, 1000, 0.9)
    ends = []
    for pixels, labels in DataLoader(Reference(samples), CONFIG.batch):
        found = net(pixels)
        losses = [F.cross_entropy(found[name], labels, ignore_index=UNLABELLED) for name in ("out", "aux")]
        loss = losses[0] + 0.5 * losses[1]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        loss.item()  # for its log
        ends.append(time.perf_counter())
    return [end - before for before, end in pairwise(ends[WARM - 1 :])]


def our_steps(samples: list[Sample], folder: Path) -> list[float]:
    """Seconds of each step of `fit` that counts, with its share of the saved state."""
    ends: list[float] = []
    saving: list[float] = []
    with (
        _after("segment.learner.Learner.on_train_batch_end", lambda began: ends.append(time.perf_counter())),
        _after(
            "segment.train._State.on_train_epoch_end",
            lambda began: saving.append(time.perf_counter() - began),
        ),
    ):
        fit(samples, [], ClassTable(), replace(CONFIG, steps=WARM + STEPS), CPU, folder, "speed")
    share = saving[0] / CONFIG.save_every
    return [end - before + share for before, end in pairwise(ends[WARM - 1 :])]


def _after(name: str, then: Callable[[float], None]) -> Any:
    """A method that calls `then` with the time at which it began, once it is done."""
    owner, attribute = name.rsplit(".", 1)
    method = getattr(pkgutil.resolve_name(owner), attribute)

    def whole(*args: Any) -> None:
        began = time.perf_counter()
        method(*args)
        then(began)

    return mock.patch(name, whole)


@torch.inference_mode()
def plain_mask(workspace: Workspace, network: nn.Module, painting: Painting) -> NDArray[np.uint8]:
    """(H, W) raw ids of one painting, by the plain loop; it and its confidence are written too."""
    pixels = torch.from_numpy(load_painting(painting.file(workspace)).copy()).permute(2, 0, 1)
    small = v2.functional.resize(pixels, [CONFIG.smallest_side], antialias=True)
    one, two = (network(_normal(part)[None])["out"].softmax(1) for part in (small, small.flip(-1)))
    both = F.interpolate((one + two.flip(-1)) / 2, SIZE, mode="bilinear", align_corners=False)[0]
    best, index = both.max(0)
    raw = ClassTable().to_raw(index.to(torch.uint8).numpy())
    Image.fromarray(raw).save(workspace.root / "plain.png")
    Image.fromarray((best * 255).round().to(torch.uint8).numpy()).save(workspace.root / "confidence.png")
    return raw


def _plain_network() -> nn.Module:
    """The network as torchvision builds it, without our layers."""
    net: nn.Module = deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=len(ClassTable()), aux_loss=True
    )
    return net


def _normal(pixels: Tensor) -> Tensor:
    normal: Tensor = v2.functional.normalize(pixels.float(), MEAN, STD)
    return normal
