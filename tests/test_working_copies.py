"""The transformer's optimizer: bfloat16 copies, with and without a compiled step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from generate.working_copies import CopiedAdamW, compiled_update


def steps(compiled: bool) -> tuple[CopiedAdamW, list[Tensor]]:
    """Five steps of a small network; its optimizer and weights."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(37, 129), nn.GELU(), nn.LayerNorm(129), nn.Linear(129, 5))
    optimizer = CopiedAdamW(net.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    optimizer.copy_matrices(net, compiled)
    for _ in range(5):
        x, y = torch.randn(8, 37), torch.randn(8, 5)
        with torch.autocast("cpu", torch.bfloat16):
            found = optimizer.call(net, x)
        torch.autograd.backward(((found.float() - y) ** 2).mean())
        optimizer.step()
        optimizer.zero_grad()
    return optimizer, list(net.parameters())


def test_a_compiled_step_is_adamw() -> None:
    optimizer, weights = steps(compiled=True)
    if optimizer.update is None:
        pytest.skip("no C++ compiler that torch could use")
    other, others = steps(compiled=False)
    for one, expected in zip(weights, others, strict=True):
        assert torch.allclose(one, expected, atol=2e-5)
    for one, expected in zip(weights, others, strict=True):
        for name, value in other.state[expected].items():
            assert torch.allclose(optimizer.state[one][name], value, rtol=1e-2, atol=1e-5), name
    assert all(torch.equal(copy, one.bfloat16()) for one, copy in optimizer.copies.items())


def test_a_compiled_step_finds_a_gradient_that_is_not_finite() -> None:
    optimizer, _ = steps(compiled=True)
    if optimizer.update is None:
        pytest.skip("no C++ compiler that torch could use")
    assert not any(one in optimizer.copies for one in optimizer.leaves())
    for number, copy in enumerate(optimizer.copies.values()):
        copy.grad = torch.full_like(copy, torch.inf if number else 1.0)
    with pytest.raises(FloatingPointError, match="the gradient is inf"):
        optimizer.step()


def test_without_a_compiler_steps_are_only_slower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    with config.patch({"cpp.cxx": (None, str(tmp_path / "no-compiler")), "fx_graph_cache": False}):
        assert compiled_update() is None
    torch._dynamo.reset()
    assert "not compiled" in capsys.readouterr().err
