"""The perceptual loss: how far two images lie apart for a VGG16, where its weights are at hand."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import VGG16_Weights
from torchvision.models.vgg import cfgs, make_layers

from annotate.errors import UserError
from annotate.progress import note

SLICES = (3, 8, 15, 22, 29)  # the last ReLU of each of VGG16's five levels
WEIGHTS = VGG16_Weights.IMAGENET1K_V1


class PerceptualLoss(nn.Module):
    """Mean squared distance of VGG16's features, each position's vector at length one, summed over five levels.

    Source: Zhang et al. 2018 (LPIPS), equation 1, with every channel weighted alike.
    """

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
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

    def forward(self, image: Tensor, other: Tensor) -> Tensor:
        """Distance of (B, 3, H, W) images in [-1, 1]; a scalar."""
        x = (torch.cat([image, other]) * 0.5 + 0.5 - self.mean) / self.std
        total = x.new_zeros(())
        for number, layer in enumerate(self.features):
            x = cast(Tensor, layer(x))
            if number in SLICES:
                a, b = F.normalize(x.float(), dim=1, eps=1e-10).chunk(2)
                total = total + (a - b).square().sum(1).mean()
            if number == SLICES[-1]:
                break
        return total


def find_perceptual(source: str) -> PerceptualLoss | None:
    """The loss, where there are weights for it.

    Args:
        source: `none`; `auto` (weights that torchvision has fetched before); `fetch` (let torchvision download
            them); or a file with the state dict of torchvision's vgg16, .safetensors or .pth.

    Raises:
        UserError: the file is not there, or holds something else.
    """
    if source == "none":
        return None
    if source == "fetch":
        return PerceptualLoss(dict(WEIGHTS.get_state_dict(progress=False, check_hash=True)))
    path = Path(source).expanduser()
    if source == "auto":
        path = Path(torch.hub.get_dir()) / "checkpoints" / Path(WEIGHTS.url).name
        if not path.exists():
            note("no VGG16 weights here: trained without the perceptual loss (--perceptual FILE or fetch)")
            return None
    if not path.is_file():
        raise UserError(f"--perceptual {source}: no such file; give VGG16's state dict, auto, fetch or none")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        return PerceptualLoss(dict(state))
    except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
        line = str(error).splitlines()[0]
        raise UserError(f"{path}: not the state dict of torchvision's vgg16 ({line})") from error
