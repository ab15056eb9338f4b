"""The models give the numbers of taming-transformers' own."""

from __future__ import annotations

import golden_models
import pytest
import torch
import torch.nn.functional as F
from golden_models import GRIDS, mask_codes, painting_codes, transformer, vector

from generate.attention import attend_in_parts
from generate.config import SEED_MASK_CODES, SEED_PAINTING_CODES, SEED_TRANSFORMER, GPTConfig, VQGANConfig
from generate.gpt import GPT, in_one_product
from generate.norm import Norm
from generate.quantize import Codebook
from generate.vqgan import VQGAN, Upsample, one_hot_conv


def test_painting_codes_are_the_references() -> None:
    model, image = painting_codes(), vector("image")
    with torch.no_grad():
        tokens = model.encode(image)
        torch.testing.assert_close(model.prequantised(image), vector("image_prequant"), atol=1e-4, rtol=0)
        assert torch.equal(tokens.indices, vector("image_indices"))
        decoded = model.decode_indices(tokens.indices)
    torch.testing.assert_close(decoded, vector("image_reconstruction"), atol=1e-4, rtol=0)


@pytest.mark.parametrize("grid", GRIDS)
def test_mask_codes_are_the_references(grid: str) -> None:
    raw = vector(f"mask_{grid}")
    ids = (raw + 1) % 256
    with torch.no_grad():
        assert torch.equal(mask_codes().encode_mask(ids[None]).indices, vector(f"mask_indices_{grid}"))


def test_logits_are_the_references() -> None:
    with torch.no_grad():
        logits = transformer()(vector("gpt_tokens"))
    torch.testing.assert_close(logits, vector("gpt_logits"), atol=1e-4, rtol=0)


def test_one_hot_convolution_without_a_one_hot() -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(11, 4, 3, padding=1)
    ids = torch.randint(11, (2, 5, 7))
    dense = conv(F.one_hot(ids, 11).permute(0, 3, 1, 2).float())
    sparse = one_hot_conv(conv, ids)
    torch.testing.assert_close(sparse, dense)
    torch.autograd.backward(sparse.square().mean())
    assert conv.weight.grad is not None
    ours = conv.weight.grad.clone()
    conv.weight.grad = None
    torch.autograd.backward(dense.square().mean())
    torch.testing.assert_close(ours, conv.weight.grad)


def test_upsampling_without_the_enlarged_copy() -> None:
    torch.manual_seed(0)
    up, x = Upsample(3), torch.randn(2, 3, 5, 7, requires_grad=True)
    found, wanted = (
        (one, torch.autograd.grad(one.square().sum(), [x, *up.parameters()]))
        for one in (up(x), up.conv(F.interpolate(x, scale_factor=2.0)))
    )
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 64, 5, 7), (1, 32, 16, 16), (3, 96, 8, 4)])
def test_group_norm_of_bfloat16_on_a_cpu_is_group_norm(shape: tuple[int, ...]) -> None:
    """Forward and backward, against float32's, on numbers that bfloat16 has exactly."""
    torch.manual_seed(0)
    norm = Norm(shape[1])
    torch.nn.init.normal_(norm.weight)
    x, pull = (torch.randn(shape).bfloat16() for _ in range(2))
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        given = (x + 3).to(dtype).requires_grad_()
        y = norm(given)
        assert y.dtype == dtype
        y.backward(pull.to(dtype))
        found.append((y, given.grad, norm.weight.grad, norm.bias.grad))
        norm.zero_grad()
    for mine, theirs in zip(*found, strict=True):
        assert mine is not None
        assert theirs is not None
        size = theirs.abs().max().item() + 1e-3
        torch.testing.assert_close(mine.float(), theirs, atol=0.02 * size, rtol=0)


def test_bfloat16_training_stays_in_the_layout_that_is_quick_on_a_cpu() -> None:
    """One layer that changes it would cost more time than all norms together."""
    net = VQGAN(golden_models.PAINTING_SIZES)
    seen = []
    for part in net.modules():
        if isinstance(part, torch.nn.Conv2d) and part.kernel_size == (3, 3):
            part.register_forward_hook(lambda _, args, y: seen.extend([args[0], y]))
    with torch.autocast("cpu", torch.bfloat16):
        net(torch.randn(2, 3, 64, 64))
    assert len(seen) > 20
    assert all(one.is_contiguous(memory_format=torch.channels_last) for one in seen)


@pytest.mark.parametrize("length", [5, 128, 300])
def test_attention_in_parts_is_attention(length: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 8, requires_grad=True) for _ in range(3))
    found, wanted = (
        (one, torch.autograd.grad(one.square().sum(), [q, k, v]))
        for one in (attend_in_parts(q, k, v), F.scaled_dot_product_attention(q, k, v, is_causal=True))
    )
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)


def test_one_product_is_what_three_layers_make() -> None:
    """With their gradients: training on a GPU takes it."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(8, 8) for _ in range(3)]
    x = torch.randn(2, 5, 8, requires_grad=True)
    wanted_from = [x, *(weight for layer in layers for weight in layer.parameters())]
    found, wanted = (
        (one, torch.autograd.grad(sum(part.pow(n + 2).sum() for n, part in enumerate(one)), wanted_from))
        for one in (tuple(in_one_product(x, layers)), tuple(layer(x) for layer in layers))
    )
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_logits_in_training_are_those_of_sampling() -> None:
    tokens = vector("gpt_tokens")
    with torch.no_grad():
        wanted = transformer()(tokens)
    torch.testing.assert_close(transformer()(tokens), wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(transformer()(tokens, slice(2, -1)), wanted[:, 2:-1], atol=1e-4, rtol=0)


def test_the_seed_documents_sizes() -> None:
    with torch.device("meta"):
        gpt, painting, mask = GPT(SEED_TRANSFORMER), VQGAN(SEED_PAINTING_CODES), VQGAN(SEED_MASK_CODES)
    assert sum(p.numel() for p in gpt.parameters()) == 304_932_864
    assert SEED_TRANSFORMER.window == SEED_PAINTING_CODES.downsampling == SEED_MASK_CODES.downsampling == 16
    assert painting.encoder.conv_in.weight.shape == (128, 3, 3, 3)
    assert mask.encoder.conv_in.weight.shape == (128, 182, 3, 3)
    assert painting.quantize.embedding.weight.shape == (1024, 256)
    attending = [name for name, _ in painting.named_modules() if name.endswith(".attn.0")]
    assert attending == ["encoder.down.4.attn.0", "decoder.up.4.attn.0"]


def test_config_round_trip_and_the_key_that_differs() -> None:
    assert VQGANConfig.from_dict(SEED_MASK_CODES.to_dict()) == SEED_MASK_CODES
    values = SEED_TRANSFORMER.to_dict()
    with pytest.raises(ValueError, match="unknown key 'n_layer'"):
        GPTConfig.from_dict(values | {"n_layer": 3})
    del values["heads"]
    with pytest.raises(ValueError, match="missing key 'heads'"):
        GPTConfig.from_dict(values)


def test_codebook_takes_the_nearest_row_and_passes_gradients() -> None:
    book = Codebook(3, 2)
    book.embedding.weight.data = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    z = torch.tensor([[0.9, 0.2], [0.1, 1.2], [0.1, 0.1]]).T.reshape(1, 2, 1, 3).requires_grad_()
    quantized = book(z)
    assert quantized.indices.tolist() == [[[1, 2, 0]]]
    assert torch.equal(quantized.z, book.lookup(quantized.indices))
    torch.autograd.backward(quantized.z.sum())
    assert z.grad is not None
    assert torch.equal(z.grad, torch.ones_like(z))


@pytest.mark.parametrize("reference_order", [False, True])
def test_codebook_loss_weights_the_term_that_it_says(reference_order: bool) -> None:
    book = Codebook(1, 1, beta=0.25, reference_order=reference_order)
    book.embedding.weight.data = torch.tensor([[1.0]])
    z = torch.full((1, 1, 1, 1), 3.0, requires_grad=True)
    torch.autograd.backward(book(z).loss)
    codebook, commitment = (0.25, 1.0) if reference_order else (1.0, 0.25)
    grad = book.embedding.weight.grad
    assert grad is not None
    assert grad.item() == pytest.approx(codebook * 2 * (1 - 3))
    assert z.grad is not None
    assert z.grad.item() == pytest.approx(commitment * 2 * (3 - 1))


def test_more_tokens_than_the_block_is_refused() -> None:
    with pytest.raises(ValueError, match="block_size is 512"):
        transformer()(torch.zeros(1, 513, dtype=torch.long))


def test_golden_files_are_small() -> None:
    assert sum(path.stat().st_size for path in golden_models.GOLDEN.iterdir()) < 8e6
