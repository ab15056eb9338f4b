"""Tensors out of files that `torch.save` wrote, without running anything that they say.

Both layouts are read: the zip archive of torch 1.6 and later, and the stream of pickles before it. Of the pickle,
tensors and plain containers come through. Every class or function that it names becomes an inert placeholder; it
may be named, made an instance of or given a state, but not called: then the file is refused, naming what it
wanted to call.

Source: PyTorch, torch/serialization.py (`_load`, `_legacy_load`) and torch/_utils.py.
"""

from __future__ import annotations

import math
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from annotate.errors import UserError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's `state_dict`, or of a bare state dict.

    Only these are read; the optimizer's, usually twice as large, stay on disk.

    Raises:
        UserError: missing, damaged, holds no state dict, or its pickle would call something; the line names it.
    """
    try:
        with path.open("rb") as file:
            loaded, read = _read_zip(file) if zipfile.is_zipfile(file) else _read_legacy(file)
            state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
            found = (
                {k: v for k, v in state.items() if isinstance(v, _Tensor)} if isinstance(state, dict) else {}
            )
            tensors = {str(name): _build(one, read) for name, one in found.items()}
    except _ForbiddenCall as error:
        raise UserError(
            f"{path}: refused, its pickle wants to call {error}; get the checkpoint from a source you trust"
        ) from error
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give the .ckpt of the training"
        ) from error
    except _DAMAGE as error:
        line = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise UserError(
            f"{path}: not a readable checkpoint ({line}); copy it again from its source"
        ) from error
    if not tensors:
        raise UserError(f"{path}: holds no state_dict with tensors; give the .ckpt of the training")
    return tensors


# what a hostile or damaged pickle or archive can raise, in whichever order its bytes fall
_DAMAGE = (
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


class _ForbiddenCall(Exception):  # noqa: N818, it is a finding, not a failure
    """The pickle would call this."""


@dataclass(frozen=True)
class _Storage:
    """Numbers that still lie in the file."""

    dtype: torch.dtype
    key: str
    count: int


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage, read when it is asked for."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _build(one: _Tensor, read: Callable[[_Storage], bytes]) -> Tensor:
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


def _read_zip(file: IO[bytes]) -> tuple[Any, Callable[[_Storage], bytes]]:
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
    with archive.open(f"{root}data.pkl") as stream:
        loaded = _Unpickler(stream).load()

    def read(storage: _Storage) -> bytes:
        return archive.read(f"{root}data/{storage.key}")

    return loaded, read


def _read_legacy(file: IO[bytes]) -> tuple[Any, Callable[[_Storage], bytes]]:
    file.seek(0)
    if _Unpickler(file).load() != LEGACY_MAGIC:
        raise ValueError("neither a zip archive nor torch's older layout")
    _Unpickler(file).load()  # version of the layout
    _Unpickler(file).load()  # byte order and sizes of the machine
    unpickler = _Unpickler(file)
    loaded = unpickler.load()
    places = {}
    for key in _Unpickler(file).load():
        (count,) = struct.unpack("<q", file.read(8))
        storage = unpickler.storages[key]
        if count != storage.count:
            raise ValueError(f"storage {key} has {count} numbers, not {storage.count}")
        places[key] = file.tell()
        file.seek(count * storage.dtype.itemsize, 1)

    def read(storage: _Storage) -> bytes:
        file.seek(places[storage.key])
        return file.read(storage.count * storage.dtype.itemsize)

    return loaded, read


class _Placeholder(type):
    """Class of all placeholders: one that the pickle calls is refused."""

    def __call__(cls, *args: object, **kwargs: object) -> Any:
        raise _ForbiddenCall(f"{cls.__module__}.{cls.__qualname__}")


class _Inert(metaclass=_Placeholder):
    """What anything that the pickle names becomes: it takes everything and does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...

    def append(self, value: object) -> None: ...

    def extend(self, values: object) -> None: ...


class _Dict(dict[Any, Any]):
    """An OrderedDict or defaultdict; a state dict's `_metadata` is dropped."""

    def __setstate__(self, state: object) -> None: ...


class _Maker:
    """Something that a pickle may call. It has no attributes that the pickle could change."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("the pickle would change what makes its tensors")


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *rest: object) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without storage")
    return _Tensor(storage, int(offset), tuple(map(int, size)), tuple(map(int, stride)))


def _nothing(*args: object) -> _Inert:
    return _Inert.__new__(_Inert)


_MAKERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *rest: data,
    "collections.OrderedDict": lambda *rows: _Dict(*rows[:1]),
    "collections.defaultdict": lambda *rows: _Dict(),
    "torch.Size": lambda size=(): tuple(size),
    "builtins.set": lambda rows=(): set(rows),
    "builtins.frozenset": lambda rows=(): frozenset(rows),
    # plain values and instances of classes: of no use here, and nothing of theirs is run
    **dict.fromkeys(
        (
            "_codecs.encode",
            "collections.Counter",
            "copyreg._reconstructor",
            "datetime.datetime",
            "datetime.timedelta",
            "numpy.core.multiarray._reconstruct",
            "numpy.core.multiarray.scalar",
            "numpy._core.multiarray._reconstruct",
            "numpy._core.multiarray.scalar",
            "numpy.dtype",
            "pathlib.PosixPath",
            "pathlib.WindowsPath",
            "pathlib._local.PosixPath",
            "pathlib._local.WindowsPath",
            "torch._utils._rebuild_device_tensor_from_numpy",
            "torch.device",
        ),
        _nothing,
    ),
}


# Python 2 names, which the protocol that torch uses still writes
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg", "commands": "subprocess"}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        module = _RENAMED.get(module, module)
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        make = _MAKERS.get(f"{module}.{name}")
        if make is not None:
            return _Maker(make)
        return _Placeholder(name, (_Inert,), {"__module__": module, "__qualname__": name})

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # the older layout keeps a module's class together with its source
            return pid[1]
        kind, dtype, key, _, count = pid[:5]
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"persistent id of kind {kind!r}")
        if len(pid) > 5 and pid[5] is not None:
            raise pickle.UnpicklingError("views of storages, as torch before 0.4 wrote them")
        storage = _Storage(dtype, str(key), int(count))
        return self.storages.setdefault(storage.key, storage)
