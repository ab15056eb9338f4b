"""A trained DeepLabV3 made ready to label: the same logits, sooner."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from segment.device import has_fast_bfloat16


class Inference(nn.Module):
    """Backbone and classifier with their BatchNorms folded in; the auxiliary head is left out.

    On a CPU with bfloat16 in hardware only the classifier runs in it. There it halves the time; in the backbone,
    whose depthwise convolutions gain nothing, it would only cost exactness: one pixel in 500 gets another class,
    instead of one in 1800.

    Args:
        net: of `segment.model.build`, trained; it is copied.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        own = copy.deepcopy(net).eval()
        assert isinstance(own.backbone, nn.Module)
        assert isinstance(own.classifier, nn.Module)
        fold(own)
        self.backbone, self.classifier = own.backbone, own.classifier
        self.eval().to(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) normalised pixels to logits `out` (B, K, H, W), float32."""
        kind, fast = pixels.device.type, has_fast_bfloat16(pixels.device)
        with torch.autocast(kind, torch.bfloat16, enabled=fast and kind != "cpu"):
            features = self.backbone(pixels)["out"]
        with torch.autocast(kind, torch.bfloat16, enabled=fast):
            logits = self.classifier(features).float()
        return {"out": F.interpolate(logits, pixels.shape[-2:], mode="bilinear", align_corners=False)}


def fold(module: nn.Module) -> None:
    """Fold every BatchNorm that follows a convolution among a module's children into it, in place."""
    before = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and before is not None:
            conv = module.get_submodule(before)
            assert isinstance(conv, nn.Conv2d)
            setattr(module, before, fuse_conv_bn_eval(conv, child))
            setattr(module, name, nn.Identity())
        before = name if isinstance(child, nn.Conv2d) else None
        fold(child)
