"""A mask VQGAN of all channels from one that was trained with the channels that occur."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from generate.config import VQGANConfig
from generate.vqgan import VQGAN


def expand(net: VQGAN, present: Sequence[int], n_labels: int) -> VQGAN:
    """A mask VQGAN of `n_labels` channels from one that has only the channels of `present`.

    A class that never occurred feeds nothing into the encoder, and the decoder never says it: the same as if all
    channels had been trained, at a fraction of the work.

    Args:
        present: the shifted id of each channel of `net`.
    """
    sizes = net.config.to_dict() | {"in_channels": n_labels, "out_channels": n_labels}
    full, place = VQGAN(VQGANConfig.from_dict(sizes)), net.encoder.conv_in.weight.device
    state = {name: value.detach().cpu() for name, value in net.state_dict().items()}
    wanted = full.state_dict()
    entry = torch.zeros_like(wanted["encoder.conv_in.weight"])  # (C, n_labels, 3, 3)
    entry[:, list(present)] = state["encoder.conv_in.weight"]
    weight = torch.zeros_like(wanted["decoder.conv_out.weight"])  # (n_labels, C, 3, 3)
    weight[list(present)] = state["decoder.conv_out.weight"]
    bias = torch.full_like(wanted["decoder.conv_out.bias"], -20.0)  # (n_labels,)
    bias[list(present)] = state["decoder.conv_out.bias"]
    full.load_state_dict(
        state
        | {
            "encoder.conv_in.weight": entry,
            "decoder.conv_out.weight": weight,
            "decoder.conv_out.bias": bias,
        }
    )
    return full.to(place).eval()
