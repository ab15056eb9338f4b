"""bfloat16 copies of a network's matrices, which a training on a CPU computes with.

Under autocast each step casts every weight to bfloat16 and every gradient back to float32, both through memory. Here
the optimizer writes the copy while it has the weight at hand, and reads the gradient as bfloat16: the same numbers, bit
for bit, in 6 % less time (the seed document's transformer, batch 1). Compiled, all of that is one pass over memory,
which takes off a tenth more; the last bits of weights may then be others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import AdamW
from torch.optim.adamw import adamw

from annotate.progress import note

# weight, copy, its gradient, mean and mean square: flat, of one length; (6,) float32, see `_in_one_pass`
Update = Callable[..., Tensor]
TRIED = 2**20  # length for which the update is compiled: long enough to be shared by all cores


class CopiedAdamW(AdamW):
    """AdamW on float32 parameters, some of which are computed with as bfloat16 copies; states are those of AdamW.

    Without `copy_matrices` it is AdamW.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, fused=True, **named)
        self.copies: dict[Tensor, Tensor] = {}  # of parameters
        self.update: Update | None = None  # compiled

    def copy_matrices(self, net: nn.Module, compiled: bool = False) -> None:
        """From now on every matrix of `net`'s linear layers has a copy, which `call` computes with.

        Args:
            compiled: their update too, which takes half a minute, or some seconds where it was compiled before.
        """
        self.update = compiled_update() if compiled else None
        layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
        self.copies = {layer.weight: layer.weight.detach().bfloat16().requires_grad_() for layer in layers}

    def call(self, net: nn.Module, *args: Any) -> Any:
        """net(*args), with the copies in their parameters' places."""
        if not self.copies:
            return net(*args)
        copies = {name: self.copies[one] for name, one in net.named_parameters() if one in self.copies}
        return functional_call(net, copies, args)

    def leaves(self) -> list[Tensor]:
        """What gradients arrive at that `step` does not check: the copy of each parameter, or itself."""
        if self.update is not None:
            return [one for group in self.param_groups for one in group["params"] if one not in self.copies]
        return [self.copies.get(one, one) for group in self.param_groups for one in group["params"]]

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for copy in self.copies.values():
            copy.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step.

        Raises:
            FloatingPointError: a gradient is not finite; only a compiled step finds out, and weights are spoilt by then.
        """
        loss = super().step(closure)  # a parameter with a copy has no gradient itself
        largest = max((one.numel() for one in self.copies), default=0)
        # for a float32 gradient: in the cache, where memory of its own would not be
        room = torch.empty(largest if self.update is None else 0)
        total = torch.zeros(())
        for group in self.param_groups:
            for one in group["params"]:
                copy = self.copies.get(one)
                if copy is not None and copy.grad is not None:
                    total += self._step(one, copy, copy.grad, group, room)
        if not math.isfinite(float(total)):
            raise FloatingPointError(f"the gradient is {total}")
        return loss

    def _step(
        self, one: Tensor, copy: Tensor, gradient: Tensor, group: dict[str, Any], room: Tensor
    ) -> Tensor | float:
        """The gradient's sum where it is compiled, else 0."""
        state = self.state[one]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(one), torch.zeros_like(one)
        mean, square, (beta1, beta2) = state["exp_avg"], state["exp_avg_sq"], group["betas"]
        lr, decay, eps = (float(group[name]) for name in ("lr", "weight_decay", "eps"))
        if self.update is not None:
            state["step"] += 1
            steps = int(state["step"])
            size, root = lr / (1 - beta1**steps), (1 - beta2**steps) ** 0.5
            numbers = torch.tensor([1 - lr * decay, beta1, beta2, root, eps, size])
            whole = (one, copy, gradient, mean, square, numbers)
            return self.update(*(tensor.view(-1) for tensor in whole))
        adamw(
            [one],
            [room[: one.numel()].view_as(one).copy_(gradient)],
            [mean],
            [square],
            [],
            [state["step"]],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=lr,
            weight_decay=decay,
            eps=eps,
            maximize=False,
        )
        copy.copy_(one)
        return 0.0


def compiled_update() -> Update | None:
    """AdamW's update and the copy in one pass over memory, or None where nothing can be compiled."""
    update = cast(Update, torch.compile(_in_one_pass, dynamic=True))
    weight, mean, square = (torch.zeros(TRIED) for _ in range(3))
    copy, gradient = (torch.zeros(TRIED, dtype=torch.bfloat16) for _ in range(2))
    try:
        with torch.no_grad():
            update(weight, copy, gradient, mean, square, torch.ones(6))
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        note(f"steps are not compiled and take a tenth longer: {reason}")
        return None
    return update


def _in_one_pass(
    weight: Tensor, copy: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, numbers: Tensor
) -> Tensor:
    """Gives the gradient's sum.

    Args:
        numbers: 1 - rate * weight decay, beta1, beta2, root of 1 - beta2 ** step, eps, rate / (1 - beta1 ** step).
    """
    kept, beta1, beta2, root, eps, size = numbers.unbind()
    found = gradient.float()
    mean.copy_(found + beta1 * (mean - found))
    square.copy_(beta2 * square + (1 - beta2) * found * found)
    weight.copy_(weight * kept - size * mean / (square.sqrt() / root + eps))
    copy.copy_(weight)
    return found.sum()
