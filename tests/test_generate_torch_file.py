"""Checkpoints of any torch are read; one that would call something is refused by name; nothing of it is run."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import enum
import functools
import os
import pickle
import random
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from annotate.errors import UserError
from generate.torch_file import read_state_dict

both_layouts = pytest.mark.parametrize("zipped", [True, False])


def save(path: Path, value: object, zipped: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


class Calls:
    """Pickles to a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (Calls(os.system, "touch pwned"), "posix.system"),
        (Calls(subprocess.Popen, ["touch", "pwned"]), "subprocess.Popen"),  # a class, and yet a call
        (Calls(eval, "open('pwned', 'w')"), "builtins.eval"),
        (Calls(getattr, "text", "upper"), "builtins.getattr"),
        (Calls(pickle.loads, b"cos\nsystem\n(S'touch pwned'\ntR."), "_?pickle.loads"),
        (Calls(torch.load, "pwned"), "torch.serialization.load"),
        (Calls(exec, "open('pwned', 'w')"), "builtins.exec"),
        (Calls(functools.partial, os.system, "touch pwned"), "functools.partial"),
        (Calls(Calls, os.system), f"{__name__}.Calls"),
    ],
)
@both_layouts
def test_a_pickle_that_calls_something_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Calls, name: str, zipped: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "bad.ckpt", {"state_dict": {"a": torch.zeros(2)}, "x": call}, zipped)
    with pytest.raises(UserError, match=f"wants to call {name};"):
        read_state_dict(path)
    assert not (tmp_path / "pwned").exists()


def test_a_pickle_cannot_change_what_makes_its_tensors(tmp_path: Path) -> None:
    stream = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb."  # BUILD on a function
    path = tmp_path / "bad.ckpt"
    path.write_bytes(stream)
    with pytest.raises(UserError, match="would change what makes its tensors"):
        read_state_dict(path)


def test_what_looks_like_an_enumeration_is_called_with_one_value_only(tmp_path: Path) -> None:
    path = tmp_path / "bad.ckpt"
    path.write_bytes(b"\x80\x02cmain\nPopen\n]\x85R.")
    with pytest.raises(UserError, match=r"wants to call main\.Popen;"):
        read_state_dict(path)


NEST = b"K\x01" + b"2\x86" * 200  # DUP TUPLE2: 2 ** 200 ones
SHARED = b"K\x01q\x00" + b"h\x00h\x00\x86q\x00" * 200  # the same through the memo, as pickle itself writes it


@pytest.mark.parametrize("nest", [NEST, SHARED])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"}", b"K\x01s."),  # a key
        (b"", b"Q."),  # a persistent id
        (b"cbuiltins\nset\n](", b"e\x85R."),
        (b"ctorch\nSize\n", b"\x85R."),
    ],
)
def test_a_tuple_that_takes_for_ever_to_hash_is_refused(
    tmp_path: Path, nest: bytes, before: bytes, after: bytes
) -> None:
    path = tmp_path / "bomb.ckpt"
    path.write_bytes(b"\x80\x02" + before + nest + after)
    with pytest.raises(UserError, match="a pickle of more than 10000000 values"):
        read_state_dict(path)


def test_a_memo_that_takes_all_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.ckpt"
    path.write_bytes(b"\x80\x02K\x01r\xff\xff\xff\x7f.")  # place 2 ** 31 - 1 of an array
    with pytest.raises(UserError, match="a pickle of more than"):
        read_state_dict(path)


@both_layouts
def test_tensors_of_kinds_that_we_have_not_are_left_out(tmp_path: Path, zipped: bool) -> None:
    value = {
        "small": torch.zeros(3).to(torch.float8_e4m3fn),
        "unsigned": torch.zeros(3).to(torch.uint16),
        "complex": torch.zeros(3, dtype=torch.complex64),
        "double complex": torch.zeros(3, dtype=torch.complex128),
        "sparse": torch.eye(3).to_sparse(),
        "a": torch.arange(6.0),
    }
    state = read_state_dict(save(tmp_path / "one.ckpt", {"state_dict": value}, zipped))
    assert list(state) == ["a"]
    assert torch.equal(state["a"], torch.arange(6.0))


@both_layouts
def test_a_parameter_with_attributes_of_its_own_comes_through(tmp_path: Path, zipped: bool) -> None:
    parameter = torch.nn.Parameter(torch.arange(3.0))
    parameter.group = "encoder"  # type: ignore[attr-defined]
    state = read_state_dict(save(tmp_path / "one.ckpt", {"a": parameter}, zipped))
    assert torch.equal(state["a"], torch.arange(3.0))


def test_safetensors_are_read_as_a_bare_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_file({"a": torch.arange(3.0)}, path)
    assert torch.equal(read_state_dict(path)["a"], torch.arange(3.0))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"not a readable checkpoint.*copy it again"):
        read_state_dict(path)
    with pytest.raises(UserError, match=r"gone\.safetensors: cannot be read \(No such"):
        read_state_dict(tmp_path / "gone.safetensors")


def test_an_archive_without_its_end_is_cut_off(tmp_path: Path) -> None:
    path = save(tmp_path / "one.ckpt", {"a": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match="cut off"):
        read_state_dict(path)


def training_script() -> types.ModuleType:
    """Stands for the script that a training ran from; its classes are keys and values in the checkpoint."""
    module = types.ModuleType("main")
    for name, base in (("ImageLogger", object), ("Settings", dict), ("History", list)):
        setattr(module, name, type(name, (base,), {"__module__": "main"}))
    setattr(module, "Mode", enum.Enum("Mode", {"FIT": "fit"}, module="main"))  # noqa: B010
    return module


@both_layouts
def test_what_a_training_leaves_in_a_checkpoint_is_inert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    main = training_script()
    monkeypatch.setitem(sys.modules, "main", main)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))])
    value = {
        "state_dict": {"a": torch.arange(6.0).reshape(2, 3)},
        "callbacks": {main.ImageLogger: {"best": main.ImageLogger()}, "named": {"path": tmp_path}},
        "hyper_parameters": [main.Settings(a=1), main.History([1, 2])],
        "optimizer_states": [optimizer.state_dict()],
        "numbers": [np.float64(3.0), np.arange(3), torch.float32, torch.device("cpu"), torch.Size([2])],
        "containers": [
            collections.Counter("aab"),
            collections.defaultdict(int, {1: 2}),
            {1, 2},
            frozenset([1]),
        ],
        "more": [
            collections.deque([1, 2], 5),
            bytearray(b"ab"),
            datetime.date(2021, 9, 26),
            slice(1, 2),
            range(3),
            1j,
            decimal.Decimal("0.5"),
            main.Mode.FIT,
            {main.Mode.FIT: main.Mode},
        ],
        "others": [argparse.Namespace(a=1), datetime.datetime(2021, 9, 26), torch.nn.Linear(2, 2), os.system],
    }
    path = save(tmp_path / "last.ckpt", value, zipped)
    monkeypatch.delitem(sys.modules, "main")  # the reader has no such script
    state = read_state_dict(path)
    assert list(state) == ["a"]
    assert torch.equal(state["a"], torch.arange(6.0).reshape(2, 3))


KINDS: dict[str, Tensor] = {
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "part": torch.arange(9)[2:7],
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
    "bfloat16": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "double": torch.tensor([1.0 / 3], dtype=torch.float64),
    "byte": torch.tensor([0, 255], dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "parameter": torch.nn.Parameter(torch.ones(2, 2)),
}


@both_layouts
@pytest.mark.parametrize("bare", [True, False])
def test_tensors_come_through_as_they_are(tmp_path: Path, zipped: bool, bare: bool) -> None:
    path = save(tmp_path / "one.ckpt", KINDS if bare else {"state_dict": KINDS}, zipped)
    state = read_state_dict(path)
    assert list(state) == list(KINDS)
    for name, tensor in KINDS.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor)
        assert not state[name].requires_grad


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "the file is empty"),
        (b"nothing of the kind", "neither a zip archive nor"),
        (b"PK\x03\x04 cut", "cut off"),
        (b"\x80\x02K\x01.", "neither a zip archive nor"),
        (b"\n<!DOCTYPE html><title>404</title>", "a web page or XML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a git-LFS pointer"),
    ],
)
def test_damaged_checkpoints_are_one_line(tmp_path: Path, content: bytes, line: str) -> None:
    path = tmp_path / "bad.ckpt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"not a readable checkpoint \({line}.*; copy it again") as caught:
        read_state_dict(path)
    assert "\n" not in caught.value.message


@both_layouts
def test_any_damage_is_one_line(tmp_path: Path, zipped: bool) -> None:
    """Whatever bytes flip, the answer is tensors or one UserError."""
    path = save(tmp_path / "good.ckpt", {"state_dict": {"a": torch.arange(50.0)}, "b": [1, "c"]}, zipped)
    good, chance, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(300):
        bad = bytearray(good[: chance.choice([len(good), chance.randrange(1, len(good))])])
        for _ in range(chance.randrange(1, 4)):
            bad[chance.randrange(len(bad))] = chance.randrange(256)
        path.write_bytes(bad)
        try:
            read_state_dict(path)
        except UserError:
            refused += 1
    assert refused > 100


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path: Path) -> None:
    expanded = torch.zeros(1).expand(10**12)  # four terabytes, were it made
    path = save(tmp_path / "huge.ckpt", {"state_dict": {"a": expanded}})
    with pytest.raises(UserError, match="in a storage of 1 numbers"):
        read_state_dict(path)


def test_no_tensors_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no state_dict"):
        read_state_dict(save(tmp_path / "none.ckpt", {"epoch": 3}))
    with pytest.raises(UserError, match=r"gone\.ckpt: cannot be read"):
        read_state_dict(tmp_path / "gone.ckpt")
    with pytest.raises(UserError, match="cannot be read"):
        read_state_dict(tmp_path)
