"""An unpickler that runs nothing of what a pickle says, for the pickles that `torch.save` writes.

Tensors and plain containers come through. Every class or function that the pickle names becomes an inert placeholder;
it may be named, made an instance of or given a state, but not called: that is refused, naming what it wanted to call.

Source: PyTorch, torch/_utils.py.
"""

from __future__ import annotations

import pickle
import pickletools
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import torch

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
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
HEAVIEST = 10_000_000  # items of tuples that one pickle may make Python hash


class ForbiddenCall(Exception):  # noqa: N818, it is a finding, not a failure
    """The pickle would call this."""


@dataclass(frozen=True)
class Storage:
    """Numbers that still lie in the file."""

    dtype: torch.dtype
    key: str
    count: int


@dataclass(frozen=True)
class View:
    """A view of a storage, read when it is asked for."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def unpickler(file: IO[bytes]) -> _Unpickler:
    """For the pickle that begins here, after a look at it."""
    start = file.tell()
    _weigh(file)
    file.seek(start)
    return _Unpickler(file)


def _weigh(file: IO[bytes]) -> None:
    """Refuse a pickle that would keep Python busy for ever, or take all memory, while it is read.

    A tuple of the same tuple twice, of the same tuple twice, and so on, is a few bytes long, and takes for ever to
    hash. So its items are counted, on a stack where each value is only the number of items in it.

    Raises:
        ValueError: more than HEAVIEST items, or not a pickle at all.
    """
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[Any, int] = {}
    work = 0
    for opcode, arg, _ in pickletools.genops(file):
        if opcode.name == "MARK":
            marks.append(len(stack))
        elif opcode.name == "POP" and marks and marks[-1] == len(stack):
            marks.pop()
        elif opcode.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            place = len(memo) if arg is None else arg
            work = max(work, place)  # the unpickler's memo is an array
            memo[place] = stack[-1]
        elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif opcode.name == "DUP":
            stack.append(stack[-1])
        else:
            items = _taken(opcode, stack, marks)
            work = max(work, items) if opcode.name.startswith("TUPLE") else work + items
            # what these make may be, or hold, one of the tuples that they were given
            keeps = opcode.name.startswith("TUPLE") or opcode.name in ("REDUCE", "BINPERSID")
            stack += [1 + items if keeps else 1] * len(opcode.stack_after)
        if work > HEAVIEST:
            raise ValueError(f"a pickle of more than {HEAVIEST} values")


def _taken(opcode: pickletools.OpcodeInfo, stack: list[int], marks: list[int]) -> int:
    """Take from the stack what an opcode takes; how many items that was."""
    before, items = opcode.stack_before, 0
    if pickletools.markobject in before:
        mark = marks.pop()
        items = sum(stack[mark:])
        del stack[mark:]
        before = before[: before.index(pickletools.markobject)]
    return items + sum(stack.pop() for _ in before)


class _Placeholder(type):
    """Class of all placeholders: one that the pickle calls is refused."""

    def __call__(cls, *args: object, **kwargs: object) -> Any:
        raise ForbiddenCall(f"{cls.__module__}.{cls.__qualname__}")


class _Inert(metaclass=_Placeholder):
    """What anything that the pickle names becomes: it takes everything and does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...

    def append(self, value: object) -> None: ...

    def extend(self, values: object) -> None: ...


class _Enumeration(_Placeholder):
    """Class of placeholders that may be enumerations, whose members are pickled as a call with their value."""

    def __call__(cls, *args: object, **kwargs: object) -> Any:
        if len(args) != 1 or not isinstance(args[0], str | int | float):
            return super().__call__(*args)
        return _nothing()


class _Member(_Inert, metaclass=_Enumeration):
    """What the classes of a training's own code become."""


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


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *rest: object) -> View:
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError("a tensor without storage")
    return View(storage, int(offset), tuple(map(int, size)), tuple(map(int, stride)))


def _nothing(*args: object) -> _Inert:
    return _Inert.__new__(_Inert)


_MAKERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *rest: data,
    "collections.OrderedDict": lambda *rows: _Dict(*rows[:1]),
    "collections.defaultdict": lambda *rows: _Dict(),
    "torch._utils._rebuild_parameter_with_state": lambda data, *rest: data,
    "torch.Size": lambda size=(): tuple(size),
    # plain values and instances of classes: of no use here, and nothing of theirs is run
    **dict.fromkeys(
        (
            "_codecs.encode",
            "builtins.bytearray",
            "builtins.complex",
            "builtins.frozenset",
            "builtins.range",
            "builtins.set",
            "builtins.slice",
            "builtins.xrange",
            "collections.Counter",
            "collections.deque",
            "copyreg._reconstructor",
            "datetime.date",
            "datetime.datetime",
            "datetime.time",
            "datetime.timedelta",
            "datetime.timezone",
            "decimal.Decimal",
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
            "torch._utils._rebuild_qtensor",
            "torch._utils._rebuild_sparse_tensor",
            "torch._utils._rebuild_tensor_v3",
            "torch.device",
            "torch.serialization._get_layout",
        ),
        _nothing,
    ),
}


# Python 2 names, which the protocol that torch uses still writes
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg", "commands": "subprocess"}


# code of trainings: their enumerations come along among callbacks and hyperparameters
_TRAININGS = ("__main__", "lightning", "lightning_fabric", "main", "omegaconf", "pytorch_lightning", "taming")


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        module = _RENAMED.get(module, module)
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        make = _MAKERS.get(f"{module}.{name}")
        if make is not None:
            return _Maker(make)
        if f"{module}.{name}" == "torch.storage.UntypedStorage":
            return torch.uint8
        where = {"__module__": module, "__qualname__": name}
        if module.split(".")[0] in _TRAININGS and name[:1].isupper():
            return _Enumeration(name, (_Member,), where)
        return _Placeholder(name, (_Inert,), where)

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # the older layout keeps a module's class together with its source
            return pid[1]
        kind, dtype, key, _, count = pid[:5]
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError(f"persistent id of kind {reprlib.repr(kind)}")
        if len(pid) > 5 and pid[5] is not None:
            raise pickle.UnpicklingError("views of storages, as torch before 0.4 wrote them")
        storage = Storage(dtype, key, int(count))
        return self.storages.setdefault(storage.key, storage)
