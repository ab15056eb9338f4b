"""The perceptual loss: how far two images lie apart for a VGG16, where its weights are at hand."""

from __future__ import annotations

from collections.abc import Sequence
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VGG16_Weights
from torchvision.models.vgg import cfgs, make_layers

from annotate.errors import UserError
from annotate.progress import note
from generate.torch_file import read_state_dict

SLICES = (3, 8, 15, 22, 29)  # the last ReLU of each of VGG16's five levels
WEIGHTS = VGG16_Weights.IMAGENET1K_V1


class PerceptualLoss(nn.Module):
    """LPIPS: squared distance of VGG16's features, each position's vector at length one, summed over five levels.

    Args:
        state: of torchvision's vgg16.
        channels: weights (C,) of each level's channels, learnt from people's judgement.

    Source: Zhang et al. 2018, equation 1.
    """

    def __init__(self, state: dict[str, Tensor], channels: Sequence[Tensor]) -> None:
        super().__init__()
        self.channels = nn.ParameterList([nn.Parameter(one, requires_grad=False) for one in channels])
        self.features = make_layers(cfgs["D"])  # without the classifier, which is nine tenths of it
        prefix = "features."
        self.features.load_state_dict(
            {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        )
        self.features.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """Distance of (B, 3, H, W) images in [-1, 1]; a scalar, whose gradient goes to `image` only."""
        with torch.no_grad():  # half of the backward pass saved
            wanted = self._levels(target)
        total = image.new_zeros(())
        for level, (a, b) in enumerate(zip(self._levels(image), wanted, strict=True)):
            total = total + ((a - b).square() * self.channels[level][:, None, None]).sum(1).mean()
        return total

    def _levels(self, image: Tensor) -> list[Tensor]:
        x, levels = (image * 0.5 + 0.5 - self.mean) / self.std, []
        for number, layer in enumerate(self.features[: SLICES[-1] + 1]):
            x = cast(Tensor, layer(x))
            if number in SLICES:
                levels.append(F.normalize(x.float(), dim=1, eps=1e-10))
        return levels


def channel_weights() -> list[Tensor]:
    """LPIPS's own weights of VGG16's channels, (C,) for each level; torchmetrics carries them (7 kB)."""
    spec = find_spec("torchmetrics")  # found, not imported: that takes a second
    assert spec is not None, "torchmetrics is a dependency"
    path = Path(spec.origin or "").parent / "functional/image/lpips_models/vgg.pth"
    state = torch.load(path, map_location="cpu", weights_only=True)
    return [state[f"lin{level}.model.1.weight"].flatten() for level in range(len(SLICES))]


def has_perceptual(source: str) -> bool:
    """Whether `find_perceptual` has a loss to give. Nothing is read or downloaded.

    Raises:
        UserError: the file is not there.
    """
    return source == "fetch" or _weights_file(source) is not None


def find_perceptual(
    source: str, without: str = "trained without the perceptual loss"
) -> PerceptualLoss | None:
    """The loss, where there are weights for it.

    Args:
        source: `none`; `auto` (weights that torchvision has fetched before); `fetch` (let torchvision download
            them); or a file with the state dict of torchvision's vgg16, .safetensors or .pth.
        without: what follows where `auto` finds none, for the note that says so.

    Raises:
        UserError: the file is not there, or holds something else; there is no network to fetch them.
    """
    if source == "fetch":
        return PerceptualLoss(_fetch(), channel_weights())
    path = _weights_file(source)
    if path is None:
        if source == "auto":
            note(f"no VGG16 weights here: {without} (--perceptual FILE or fetch)")
        return None
    try:
        state = read_state_dict(path, "VGG16's state dict, auto, fetch or none")
    except UserError as error:
        raise UserError(f"--perceptual {error.message}") from error
    try:
        return PerceptualLoss(state, channel_weights())
    except RuntimeError as error:
        line = " ".join(str(error).split("\n", 1)[-1].split())[:120]
        raise UserError(
            f"--perceptual {path}: not the state dict of torchvision's vgg16 ({line}); give that, fetch or none"
        ) from error


def _fetch() -> dict[str, Tensor]:
    try:
        return dict(WEIGHTS.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError, HTTPException) as error:  # no network, or other bytes than promised
        raise UserError(
            f"--perceptual fetch: {WEIGHTS.url} cannot be fetched ({error}); "
            "fetch it elsewhere and give --perceptual FILE, or none"
        ) from error


def _weights_file(source: str) -> Path | None:
    if source == "none":
        return None
    if source == "auto":
        path = Path(torch.hub.get_dir()) / "checkpoints" / Path(WEIGHTS.url).name
        return path if path.exists() else None
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(f"--perceptual {source}: no such file; give VGG16's state dict, auto, fetch or none")
    return path
