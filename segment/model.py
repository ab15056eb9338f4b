"""torchvision's DeepLabV3: built, given its first weights, saved and loaded with its class table."""

from __future__ import annotations

import argparse
import json
import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import segmentation
from torchvision.models.segmentation import deeplabv3

from annotate.classes import ClassTable
from annotate.errors import UserError
from annotate.files import sha256, whole_file, write_json
from annotate.workspace import Workspace
from segment.config import ARCHITECTURES
from segment.inference import Inference
from segment.tensors import write_tensors

WEIGHTS = "model.safetensors"
# what torchvision offers to start from
IMAGENET = {
    "mobilenet_v3_large": deeplabv3.MobileNet_V3_Large_Weights.IMAGENET1K_V2,
    "resnet50": deeplabv3.ResNet50_Weights.IMAGENET1K_V2,
    "resnet101": deeplabv3.ResNet101_Weights.IMAGENET1K_V2,
}
COCO = {
    "mobilenet_v3_large": deeplabv3.DeepLabV3_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1,
    "resnet50": deeplabv3.DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1,
    "resnet101": deeplabv3.DeepLabV3_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1,
}


# what a damaged or hostile file can raise in torch's weights-only unpickler, or in safetensors
DAMAGE = (
    pickle.UnpicklingError,
    SafetensorError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    struct.error,
)


# what every saved config holds, in values that make sense
_FITS: Mapping[str, Callable[[Any], bool]] = {
    "architecture": lambda value: value in ARCHITECTURES,
    "smallest_side": lambda value: type(value) is int and value >= 0,
    "classes": lambda value: isinstance(value, list) and all(isinstance(row, dict) for row in value),
}


@dataclass(frozen=True)
class Segmenter:
    """A trained network, ready to label."""

    net: nn.Module  # in evaluation mode, on its device
    classes: ClassTable
    smallest_side: int  # paintings are scaled to it, in pixels; 0: as they are
    digest: str  # of the weights file: tells two trainings apart
    device: torch.device


def build(architecture: str, n_classes: int) -> nn.Module:
    """A DeepLabV3 with auxiliary head and random weights.

    Args:
        architecture: one of `segment.config.ARCHITECTURES`.
        n_classes: channels of the logits.
    """
    make = getattr(segmentation, f"deeplabv3_{architecture}")
    net: nn.Module = make(weights=None, weights_backbone=None, num_classes=n_classes, aux_loss=True)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # MobileNetV3's 0.01 would need thousands of steps to forget its start
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            module.__class__ = DepthwiseConv2d
        elif (
            isinstance(module, nn.Conv2d)
            and module.kernel_size == (3, 3)
            and module.padding == module.dilation > (1, 1)
        ):
            module.__class__ = AtrousConv2d
    return net


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that stays in float32 on a CPU, where its bfloat16 gradient takes 3 times as long."""

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu":
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float())


class AtrousConv2d(nn.Conv2d):
    """A dilated 3 x 3 convolution without the taps that see padding only: the same result, sooner.

    On a map that is smaller than its dilation only the middle row or column of the kernel meets a value. The
    classifier's rates are 12, 24 and 36, and a crop of 384 pixels is a map of 24.

    Source: arXiv:1706.05587, section 3.3 (a large rate degenerates to 1 x 1).
    """

    def forward(self, input: Tensor) -> Tensor:
        rows, columns = (size > rate for size, rate in zip(input.shape[2:], self.dilation, strict=True))
        every, middle = slice(None), slice(1, 2)
        weight = self.weight[:, :, every if rows else middle, every if columns else middle]
        assert isinstance(self.padding, tuple)
        padding = (self.padding[0] if rows else 0, self.padding[1] if columns else 0)
        return F.conv2d(input, weight, self.bias, self.stride, padding, self.dilation, self.groups)


def initialise(net: nn.Module, architecture: str, init: str) -> None:
    """Give the network its first weights, in place; never silently random ones.

    Args:
        init: `imagenet` (backbone only), `coco` (all but the last layer of each head), `none`, or a file.

    Raises:
        UserError: weights that cannot be found, downloaded or read, or that are another network's.
    """
    if init == "none":
        return
    if init in ("imagenet", "coco"):
        weights = _download((IMAGENET if init == "imagenet" else COCO)[architecture], init)
    else:
        weights = read_weights(Path(init).expanduser())
    _copy(net, weights, f"--init {init}", architecture)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` file, or of what `torch.save` wrote; nothing in it is ever executed.

    Raises:
        UserError: no such file, damaged, or it holds more than tensors.
    """
    if not path.is_file():
        raise UserError(f"--init {path}: no such file; give imagenet, coco, none or a file of weights")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        # torchvision's own trainings save their options
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(
            f"--init {path}: cannot be read ({error.strerror or error}); mend its permissions"
        ) from error
    except DAMAGE as error:
        line = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"--init {path}: damaged, or holds more than weights ({line}); it was not loaded, "
            "give a .safetensors file"
        ) from error
    for name in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(name), dict):
            loaded = loaded[name]
    tensors = (
        {str(k).removeprefix("module."): v for k, v in loaded.items() if isinstance(v, Tensor)}
        if isinstance(loaded, dict)
        else {}
    )
    if not tensors:
        raise UserError(f"--init {path}: holds no state dict; save the network's `state_dict()`")
    return tensors


def save(workspace: Workspace, net: nn.Module, config: Mapping[str, Any]) -> None:
    """Write models/deeplab: the weights, which carry the config, and a readable copy of it beside.

    Args:
        config: at least `architecture`, `smallest_side` and `classes` (`ClassTable.as_list`).
    """
    folder = workspace.model("deeplab")
    tensors = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    with whole_file(folder / WEIGHTS) as temporary:
        write_tensors(tensors, temporary, {"config": json.dumps(config)})
    write_json(folder / "config.json", dict(config))


def saved_config(workspace: Workspace) -> dict[str, Any] | None:
    """The config inside the weights file; None without a model.

    Raises:
        UserError: a damaged file, or one that another program or version wrote.
    """
    path = workspace.model("deeplab") / WEIGHTS
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("config", "")
    except OSError as error:
        raise UserError(f"{path}: cannot be read; mend its permissions and run the command again") from error
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); delete it and run `tool segment train`") from error
    try:
        config = dict(json.loads(text))
        wrong = [name for name, fits in _FITS.items() if not fits(config.get(name))]
    except (ValueError, TypeError):
        wrong = ["config"]
    if wrong:
        raise UserError(
            f"{path}: not a model that this version saved (no usable {', '.join(wrong)} in it); "
            "move it away and run `tool segment train`"
        )
    return config


def weights_digest(workspace: Workspace) -> str:
    """Tells two trainings apart: a hash of the weights file."""
    return sha256(workspace.model("deeplab") / WEIGHTS)[:16]


def load(workspace: Workspace, device: torch.device) -> Segmenter:
    """Load models/deeplab for the workspace's classes.

    Raises:
        UserError: no model yet, a damaged one, or one that was trained for other classes.
    """
    folder = workspace.model("deeplab")
    config = saved_config(workspace)
    if config is None:
        raise UserError(f"{folder}: no model yet; run `tool segment train`")
    path = folder / WEIGHTS
    classes = workspace.settings().classes
    _check_classes(path, ClassTable.from_list(config["classes"]), classes)
    net = build(config["architecture"], len(classes))
    try:
        net.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        line = str(error).splitlines()[0]
        raise UserError(f"{path}: damaged ({line}); delete it and run `tool segment train`") from error
    return Segmenter(
        Inference(net).to(device), classes, int(config["smallest_side"]), weights_digest(workspace), device
    )


def _check_classes(path: Path, trained: ClassTable, wanted: ClassTable) -> None:
    """The order matters: class k of the table is channel k of the logits."""
    pairs = list(zip(trained.classes, wanted.classes, strict=False))  # what one has more of comes below
    differ = [
        f"{new.name} {new.id} instead of {old.name} {old.id}"
        for old, new in pairs
        if (old.name, old.id) != (new.name, new.id)
    ]
    differ += [f"{one.name} {one.id} added" for one in wanted.classes[len(trained) :]]
    differ += [f"{one.name} {one.id} removed" for one in trained.classes[len(wanted) :]]
    if differ:
        raise UserError(
            f"{path}: was trained for other classes than tool.toml's ({', '.join(differ)}); "
            "run `tool segment train` again, or mend tool.toml"
        )


def _download(weights: Any, init: str) -> dict[str, Tensor]:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        name = weights.url.rsplit("/", 1)[1]
        raise UserError(
            f"--init {init}: {name} is not in {folder} and cannot be downloaded ({error}); put the file "
            f"from {weights.url} there, or use --init none"
        ) from error
    return state


def _copy(net: nn.Module, weights: Mapping[str, Tensor], where: str, architecture: str) -> None:
    """Copy what fits. The backbone must fit wholly; the heads' last layers belong to other classes."""
    wanted = net.state_dict()
    named = {_segmentation_name(name, weights): value for name, value in weights.items()}
    last = ("classifier.4.", "aux_classifier.4.")
    fitting = {
        name: value
        for name, value in named.items()
        if name in wanted and value.shape == wanted[name].shape and not name.startswith(last)
    }
    for name in wanted:
        if name.startswith("backbone.") and name not in fitting:
            raise UserError(
                f"{where}: has no {name} of shape {tuple(wanted[name].shape)}, so it is not a {architecture}; "
                "give the weights of that network or another --architecture"
            )
    net.load_state_dict(fitting, strict=False)


def _segmentation_name(name: str, weights: Mapping[str, Tensor]) -> str:
    """A tensor's name in a segmentation network; ImageNet classifiers name their layers without `backbone.`."""
    if any(other.startswith("backbone.") for other in weights):
        return name
    return "backbone." + name.removeprefix("features.")
