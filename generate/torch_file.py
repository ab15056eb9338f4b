"""Tensors out of files that `torch.save` wrote, without running anything that they say.

Both layouts are read: the zip archive of torch 1.6 and later, and the stream of pickles before it; and safetensors
files, which have no pickle.

Source: PyTorch, torch/serialization.py (`_load`, `_legacy_load`).
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from annotate.errors import UserError
from generate.inert_pickle import ForbiddenCall, Storage, View, unpickler

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def read_state_dict(path: Path, wanted: str = "the .ckpt of the training") -> dict[str, Tensor]:
    """The tensors of a checkpoint's `state_dict`, or of a bare state dict.

    Only these are read; the optimizer's, usually twice as large, stay on disk. Tensors of kinds that no generator
    has (complex, quantised, of eight bits) are left out.

    Args:
        wanted: what to give instead, for the error.

    Raises:
        UserError: missing, damaged, holds no state dict, or its pickle would call something; the line names it.
    """
    try:
        tensors = _read(path)
    except ForbiddenCall as error:
        raise UserError(
            f"{path}: refused, its pickle wants to call {error}; get the checkpoint from a source you trust"
        ) from error
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give {wanted}") from error
    except _DAMAGE as error:
        line = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise UserError(
            f"{path}: not a readable checkpoint ({line}); copy it again from its source"
        ) from error
    if not tensors:
        raise UserError(f"{path}: holds no state_dict with tensors; give {wanted}")
    return tensors


def _read(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        _check_start(file.read(100))
        if path.suffix.lower() == ".safetensors":
            return dict(load_file(path))
        loaded, read = _read_zip(file) if zipfile.is_zipfile(file) else _read_legacy(file)
        state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
        rows = state.items() if isinstance(state, dict) else ()
        return {
            name: _build(one, read)
            for name, one in rows
            if isinstance(name, str) and isinstance(one, View) and not one.storage.dtype.is_complex
        }


def _check_start(start: bytes) -> None:
    """Raise a ValueError that says what a file is, where that is no checkpoint."""
    if not start:
        raise ValueError("the file is empty")
    if start.startswith(b"version https://git-lfs"):
        raise ValueError("a git-LFS pointer; `git lfs pull` fetches the file")
    if start.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"<"):
        raise ValueError("a web page or XML, not a checkpoint")


# what a hostile or damaged pickle or archive can raise, in whichever order its bytes fall
_DAMAGE = (
    SafetensorError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    RecursionError,
    RuntimeError,
    NotImplementedError,  # a zip compression that Python does not have
)


def _build(one: View, read: Callable[[Storage], bytes]) -> Tensor:
    if one.offset < 0 or any(n < 0 for n in (*one.size, *one.stride)) or len(one.size) != len(one.stride):
        raise ValueError(f"a tensor of shape {one.size}, stride {one.stride} at {one.offset}")
    last = one.offset + sum((n - 1) * step for n, step in zip(one.size, one.stride, strict=True))
    if 0 in one.size:
        return torch.empty(one.size, dtype=one.storage.dtype)
    if last >= one.storage.count or math.prod(one.size) > one.storage.count:
        raise ValueError(f"a tensor of shape {one.size} in a storage of {one.storage.count} numbers")
    content = bytearray(read(one.storage))
    if len(content) != one.storage.count * one.storage.dtype.itemsize:
        raise ValueError(f"storage {one.storage.key} is cut short")
    flat = torch.frombuffer(content, dtype=one.storage.dtype)
    return flat.as_strided(one.size, one.stride, one.offset).clone(memory_format=torch.contiguous_format)


def _read_zip(file: IO[bytes]) -> tuple[Any, Callable[[Storage], bytes]]:
    archive = zipfile.ZipFile(file)
    names = archive.namelist()
    root = next((name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")), None)
    if root is None or f"{root}constants.pkl" in names:
        raise ValueError("a TorchScript program or another archive")
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder").decode() != sys.byteorder:
        raise ValueError("written on a machine of another byte order")
    # torch stores, and never compresses: so nothing grows beyond the file's own size
    if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
        raise ValueError("a compressed archive")
    stream = io.BytesIO(archive.read(f"{root}data.pkl"))
    loaded = unpickler(stream).load()

    def read(storage: Storage) -> bytes:
        return archive.read(f"{root}data/{storage.key}")

    return loaded, read


def _read_legacy(file: IO[bytes]) -> tuple[Any, Callable[[Storage], bytes]]:
    file.seek(0)
    start = file.read(2)
    if start == b"PK":
        raise ValueError("cut off: a zip archive without its end")
    file.seek(0)
    if start[:1] != pickle.PROTO or unpickler(file).load() != LEGACY_MAGIC:
        raise ValueError("neither a zip archive nor torch's older layout")
    unpickler(file).load()  # version of the layout
    unpickler(file).load()  # byte order and sizes of the machine
    body = unpickler(file)
    loaded = body.load()
    places = {}
    for key in unpickler(file).load():
        (count,) = struct.unpack("<q", file.read(8))
        storage = body.storages[key]
        if count != storage.count:
            raise ValueError(f"storage {key} has {count} numbers, not {storage.count}")
        places[key] = file.tell()
        file.seek(count * storage.dtype.itemsize, 1)

    def read(storage: Storage) -> bytes:
        file.seek(places[storage.key])
        return file.read(storage.count * storage.dtype.itemsize)

    return loaded, read
