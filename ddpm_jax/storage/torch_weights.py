"""Weights in files of PyTorch, read without PyTorch and without running code in the file.

A `.pth` is a pickle, and a pickle is a program: it names functions, and reading it calls them.  This reader knows only
the names that a dictionary of tensors needs, and maps them to plain descriptions; any other name is refused.  There are
two layouts:

    since 1.6    a zip: NAME/data.pkl, and the bytes of storage KEY in NAME/data/KEY
    before       pickles one after another: magic number, version, about the machine, the object, the storages'
                 keys; then for each key its number of elements (8 bytes) and its bytes

A storage is a flat array, a tensor a view of one: offset, sizes and strides, counted in elements.  Files of the
safetensors format (a table of contents and plain numbers) are read too.
"""

import math
import os
import pickle
import zipfile
from collections import OrderedDict
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from ddpm_jax.storage.paths import local_path

# FloatStorage, DoubleStorage, ..., and the dtypes of their elements.
STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
DTYPES = ("float32", "float64", "float16", ml_dtypes.bfloat16, "int64", "int32", "int16", "int8", "uint8", "bool")
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
LEGACY_START = pickle.dumps(MAGIC, protocol=2)
ZIP_START = b"PK\x03\x04"


class Storage(NamedTuple):
    """A flat array in the file."""

    key: str
    dtype: np.dtype
    size: int


class Tensor(NamedTuple):
    """A view of a storage, counted in its elements."""

    storage: Storage
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]


class _Kind(NamedTuple):
    """The dtype of a class of storages; it cannot be called."""

    dtype: np.dtype


class _RefusedError(ValueError):
    """The file contains something that this reader does not know."""


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """{name: array} of a dictionary of tensors that `torch.save` or safetensors wrote.

    Raises ValueError if the file contains anything else or is damaged, and OSError if it cannot be opened.
    """
    with local_path(path).open("rb") as file:
        start = file.read(len(LEGACY_START))
        file.seek(0)
        try:
            if start.startswith(ZIP_START):
                return _read_zip(file)
            return _read_legacy(file) if start == LEGACY_START else _read_safetensors(file)
        except _RefusedError as error:
            raise ValueError(f"{path} is not read: {error}") from None
        except Exception as error:  # of pickle, zipfile, struct, safetensors, ...: a damaged file can raise anything
            summary = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise ValueError(
                f"{path} cannot be read as weights ({summary}); it is damaged, or neither a .pth nor a .safetensors"
            ) from None


class _Unpickler(pickle.Unpickler):
    """Reads tensors, storages and dictionaries, and nothing else."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" in KNOWN:
            return KNOWN[f"{module}.{name}"]
        remedy = "If you trust it, convert it with torch: torch.save(model.state_dict(), PATH)"
        raise _RefusedError(f"it asks for {module}.{name}, and only tensors and dictionaries are read. {remedy}")

    def persistent_load(self, pid: Any) -> Storage:
        tag, kind, key, _, size, *view = pid
        if tag != "storage" or not isinstance(kind, _Kind) or any(part is not None for part in view):
            raise _RefusedError(f"it asks for {tag!r} of {kind!r}, which is no plain storage")
        storage = Storage(str(key), kind.dtype, int(size))
        if self.storages.setdefault(storage.key, storage) != storage:
            raise _RefusedError(f"it describes storage {key} twice, in different ways")
        return storage


def _tensor(storage: Any, offset: Any, sizes: Any, strides: Any, *_: Any) -> Tensor:
    """In place of `torch._utils._rebuild_tensor_v2`: a description of a tensor that lies inside its storage."""
    if not isinstance(storage, Storage):
        raise _RefusedError("it makes a tensor of something that is not a storage")
    tensor = Tensor(storage, int(offset), tuple(map(int, sizes)), tuple(map(int, strides)))
    numbers = (tensor.offset, *tensor.sizes, *tensor.strides)
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.sizes, tensor.strides, strict=True))
    count = math.prod(tensor.sizes)
    # A view with more elements than its storage has strides of 0: a small file could then fill the memory.
    if min(numbers) < 0 or count > storage.size or (count and last >= storage.size):
        raise _RefusedError(f"a tensor of sizes {list(tensor.sizes)} does not lie inside its storage of {storage.size}")
    return tensor


# What stands for the names that a file may ask for.
KNOWN = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    **{f"torch.{name}Storage": _Kind(np.dtype(kind)) for name, kind in zip(STORAGES, DTYPES, strict=True)},
}


def _tensors(found: Any) -> dict[str, Tensor]:
    """The object that was unpickled, as a dictionary of tensors."""
    if not isinstance(found, dict):
        raise _RefusedError(f"it holds a {type(found).__name__}; expected a dictionary of tensors, model.state_dict()")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            kind = type(value).__name__
            raise _RefusedError(f"its entry {name!r} is a {kind}; expected a dictionary of tensors, model.state_dict()")
    return dict(found)


def _array(tensor: Tensor, content: np.ndarray) -> np.ndarray:
    """The tensor as an array of its own."""
    view = content[tensor.offset :]
    strides = tuple(step * content.itemsize for step in tensor.strides)
    return np.lib.stride_tricks.as_strided(view, tensor.sizes, strides, writeable=False).copy()


def _read_zip(file: BinaryIO) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise _RefusedError("it is a zip, but not one of torch.save: it has no data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        order = archive.read(f"{folder}byteorder").decode() if f"{folder}byteorder" in members else "little"
        with archive.open(pickles[0]) as pickled:
            unpickler = _Unpickler(pickled)
            tensors = _tensors(unpickler.load())
        contents = {}
        for key, storage in unpickler.storages.items():
            info, length = members.get(f"{folder}data/{key}"), storage.size * storage.dtype.itemsize
            if info is None or info.file_size != length:
                raise _RefusedError(f"storage {key} is missing or has another size than {length} bytes")
            contents[key] = _content(archive.read(info), storage, order)
    return {name: _array(tensor, contents[tensor.storage.key]) for name, tensor in tensors.items()}


def _read_legacy(file: BinaryIO) -> dict[str, np.ndarray]:
    if (_plain(file), version := _plain(file)) != (MAGIC, VERSION):
        raise _RefusedError(f"its version is {version!r}; expected {VERSION}")
    order = "little" if _plain(file)["little_endian"] else "big"
    unpickler = _Unpickler(file)
    tensors = _tensors(unpickler.load())
    contents = {}
    for key in _plain(file):
        storage = unpickler.storages[key]
        size, length = int.from_bytes(file.read(8), order), storage.size * storage.dtype.itemsize
        content = file.read(length)
        if size != storage.size or len(content) != length:
            raise _RefusedError(f"storage {key} is cut off, or of another size than {storage.size} elements")
        contents[key] = _content(content, storage, order)
    return {name: _array(tensor, contents[tensor.storage.key]) for name, tensor in tensors.items()}


def _plain(file: BinaryIO) -> Any:
    """The next pickle of a file: numbers, strings, lists and dictionaries of them."""
    return _Unpickler(file).load()


def _content(content: bytes, storage: Storage, order: str) -> np.ndarray:
    if order not in ("little", "big"):
        raise _RefusedError(f"its byte order is {order!r}")
    array = np.frombuffer(content, storage.dtype)
    return array.byteswap() if (order == "little") != (np.little_endian) else array


def _read_safetensors(file: BinaryIO) -> dict[str, np.ndarray]:
    from safetensors.numpy import load

    return load(file.read())
