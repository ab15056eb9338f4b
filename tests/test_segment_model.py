"""DeepLabV3: first weights that are never silently random, and checkpoints that fit or say why not."""

from __future__ import annotations

import argparse
import pickle
import resource
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from annotate.classes import DEFAULT_CLASSES, ClassTable
from annotate.errors import UserError
from annotate.workspace import Workspace
from segment import model
from segment.device import has_fast_bfloat16
from segment.inference import Inference
from segment.model import build, initialise, load, save

CPU = torch.device("cpu")
ABOUT: dict[str, Any] = {
    "architecture": "mobilenet_v3_large",
    "smallest_side": 0,
    "classes": ClassTable().as_list(),
}


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(1)
    return build("mobilenet_v3_large", 6).eval()


def same(one: Mapping[str, Tensor], two: Mapping[str, Tensor], names: list[str]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in names)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_init_from_a_file(net: nn.Module, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save({"model": net.state_dict()}, path)
    else:
        save_file(net.state_dict(), path)
    fresh = build("mobilenet_v3_large", 3)  # other classes: all but the last layers is taken
    initialise(fresh, "mobilenet_v3_large", str(path))
    names = [name for name in net.state_dict() if "classifier.4." not in name]
    assert same(fresh.state_dict(), net.state_dict(), names)


def test_init_from_what_trainings_save(net: nn.Module, tmp_path: Path) -> None:
    """torchvision's reference keeps its options beside the weights, DistributedDataParallel its prefix."""
    path, state = tmp_path / "model_29.pth", net.state_dict()
    options = argparse.Namespace(lr=0.02)
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}, "args": options}, path)
    found = model.read_weights(path)
    assert same(found, state, list(state))


def test_init_from_a_classifier(net: nn.Module, tmp_path: Path) -> None:
    weights = {
        name.replace("backbone.", "features."): value
        for name, value in net.state_dict().items()
        if name.startswith("backbone.")
    }
    save_file(weights | {"classifier.0.weight": torch.zeros(2)}, tmp_path / "imagenet.safetensors")
    fresh = build("mobilenet_v3_large", 6)
    initialise(fresh, "mobilenet_v3_large", str(tmp_path / "imagenet.safetensors"))
    names = [name for name in net.state_dict() if name.startswith("backbone.")]
    assert same(fresh.state_dict(), net.state_dict(), names)


def test_init_from_another_architecture(net: nn.Module, tmp_path: Path) -> None:
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    fresh = build("resnet50", 6)
    with pytest.raises(UserError, match="so it is not a resnet50"):
        initialise(fresh, "resnet50", str(tmp_path / "weights.safetensors"))


@pytest.mark.parametrize("init", ["imagenet", "coco"])
def test_weights_that_cannot_be_downloaded(
    net: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, init: str
) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=rf"--init {init}: .*\.pth is not in .*put the file .*--init none"):
        initialise(net, "mobilenet_v3_large", init)


def test_a_file_that_is_not_there(net: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        initialise(net, "mobilenet_v3_large", str(tmp_path / "absent.pth"))


class Malicious:
    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trap,))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_never_run(net: nn.Module, tmp_path: Path, zipped: bool) -> None:
    trap = tmp_path / "trap"
    path = tmp_path / "weights.pth"
    if zipped:
        torch.save({"state_dict": Malicious(trap)}, path)
    else:
        path.write_bytes(pickle.dumps(Malicious(trap)))
    with pytest.raises(UserError, match="damaged, or holds more than weights"):
        initialise(net, "mobilenet_v3_large", str(path))
    assert not trap.exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"\x80\x02."])
def test_damaged_weights(net: nn.Module, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"damaged|holds no state dict"):
        initialise(net, "mobilenet_v3_large", str(tmp_path / name))


def test_saved_and_loaded(net: nn.Module, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    save(workspace, net, ABOUT)
    found = load(workspace, CPU)
    image = torch.rand(1, 3, 40, 56)
    with torch.inference_mode():
        assert torch.equal(found.net(image)["out"], Inference(net)(image)["out"])
    assert found.classes == ClassTable()
    assert not found.net.training
    assert (workspace.model("deeplab") / "config.json").exists()


def test_no_model_yet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model yet; run `tool segment train`"):
        load(Workspace(tmp_path), CPU)


def test_damaged_model(net: nn.Module, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    save(workspace, net, ABOUT)
    path = workspace.model("deeplab") / model.WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        load(workspace, CPU)


def test_a_full_disk_keeps_the_older_model(net: nn.Module, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    save(workspace, net, ABOUT)
    before = model.weights_digest(workspace)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(UserError, match=r"model\.safetensors: the disk is full"):
            save(workspace, net, ABOUT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert model.weights_digest(workspace) == before
    assert not list(workspace.root.rglob("*.part"))


def test_a_model_that_may_not_be_read_is_not_called_damaged(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    workspace = Workspace(tmp_path)
    save(workspace, net, ABOUT)
    monkeypatch.setattr(model, "safe_open", refused)
    monkeypatch.setattr(model, "load_file", refused)
    for read in (
        lambda: model.saved_config(workspace),
        lambda: model.read_weights(workspace.model("deeplab") / model.WEIGHTS),
    ):
        with pytest.raises(UserError, match=r"cannot be read.*; mend its permissions"):
            read()


def test_a_checkpoint_for_other_classes(net: nn.Module, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    save(workspace, net, ABOUT)
    changed = (replace(DEFAULT_CLASSES[0], name="pavement", id=139), *DEFAULT_CLASSES[1:5])
    workspace.save_settings(classes=ClassTable(changed))
    with pytest.raises(UserError, match="pavement 139 instead of road 148, street light 129 removed"):
        load(workspace, CPU)
    recoloured = (replace(DEFAULT_CLASSES[0], color="#000000"), *DEFAULT_CLASSES[1:])
    workspace.save_settings(classes=ClassTable(recoloured))
    assert load(workspace, CPU).classes.classes[0].color == "#000000"


@pytest.mark.parametrize("size", [(5, 7), (13, 7), (7, 13), (30, 25), (12, 13)])
@pytest.mark.parametrize("rate", [4, 12, 24])
def test_taps_that_see_padding_only_can_go(size: tuple[int, int], rate: int) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 4, 3, padding=rate, dilation=rate, bias=False)
    quick = model.AtrousConv2d(3, 4, 3, padding=rate, dilation=rate, bias=False)
    quick.load_state_dict(plain.state_dict())
    maps = torch.randn(2, 3, *size)
    results = []
    for layer in (plain, quick):
        own = maps.clone().requires_grad_()
        out = layer(own)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        assert own.grad is not None
        assert layer.weight.grad is not None
        results.append((out, own.grad, layer.weight.grad))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two)


def test_the_classifiers_atrous_convolutions_are_the_quick_ones(net: nn.Module) -> None:
    rates = [one.dilation[0] for one in net.modules() if isinstance(one, model.AtrousConv2d)]
    assert rates == [12, 24, 36]


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ("{}", "architecture, smallest_side, classes"),
        ('{"architecture": "vgg", "smallest_side": 0, "classes": []}', "architecture"),
        ('{"architecture": "resnet50", "smallest_side": "x", "classes": [3]}', "smallest_side, classes"),
        ("[3]", "config"),
        ("no json", "config"),
        (None, "config"),
    ],
)
def test_a_model_file_of_another_program(tmp_path: Path, config: str | None, named: str) -> None:
    workspace = Workspace(tmp_path)
    path = workspace.model("deeplab") / model.WEIGHTS
    path.parent.mkdir(parents=True)
    save_file({"a": torch.zeros(1)}, path, metadata=None if config is None else {"config": config})
    with pytest.raises(UserError, match=f"no usable {named} in it"):
        load(workspace, CPU)


@pytest.mark.parametrize("architecture", ["mobilenet_v3_large", "resnet50"])
def test_inference_gives_the_same_logits(architecture: str) -> None:
    torch.manual_seed(0)
    whole = build(architecture, 6)
    for module in whole.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics as after a training
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    quick = Inference(whole.eval())
    assert not any(isinstance(one, nn.BatchNorm2d) for one in quick.modules())
    pixels = torch.randn(2, 3, 70, 97)
    with torch.inference_mode():
        wanted, found = whole(pixels)["out"], quick(pixels)["out"]
    scale = float(wanted.abs().max())
    assert float((wanted - found).abs().max()) < 0.02 * scale  # the classifier's bfloat16
    assert float((wanted.argmax(1) != found.argmax(1)).float().mean()) < 0.01
    if not has_fast_bfloat16(CPU):
        torch.testing.assert_close(found, wanted, atol=1e-4 * scale, rtol=1e-4)
