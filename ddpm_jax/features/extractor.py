"""Feature extractors turn images into the vectors that metrics compare.

    extractor = read_extractor("inception")                  or "FILE.py:NAME", "PATH.safetensors", "inception:PATH"
    extractor = of_function(lambda images: images.reshape(len(images), -1) / 255)
    features, logits = extract(extractor, images)            images uint8 [n, h, w, c], features float32 [n, d]

Distances compare only if the features are the same.  So an extractor identifies itself: by its name, the digest of its
weights or source, and a description of its preprocessing.
"""

import functools
import hashlib
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.devices import axes, functions
from ddpm_jax.devices.mesh import fetch, global_batch, local_rows, replicated
from ddpm_jax.devices.precision import quoted
from ddpm_jax.diffusion.arrays import Whole
from ddpm_jax.errors import require, require_int
from ddpm_jax.storage.paths import local_path

__all__ = ["PUBLISHED_INCEPTION", "Extracted", "Extractor", "existing_file", "extract", "of_function"]

# Images at a time, on each device.
CHUNK = 64
# The name of Inception-v3 with the weights that FID is defined by.
PUBLISHED_INCEPTION = "inception-v3"


class Extracted(NamedTuple):
    """The features and logits of b images."""

    features: Any
    """float32 [b, d]"""
    logits: Any = None
    """float32 [b, k], for the Inception score over k classes; None: the extractor has no logits."""


@dataclass(frozen=True)
class Extractor:
    """A function of images, and its description for reports."""

    name: str
    """"inception-v3", for example."""
    digest: str
    """The sha256, in hexadecimal, of the file of weights or of the source of a plain function."""
    preprocessing: str
    """How pixels are prepared, in one phrase: size, rounding, range, channels."""
    apply: Callable[[Any], Extracted] = field(repr=False)
    """Maps uint8 images [b, height, width, channels] to Extracted.  A function with weights is a pytree of them and may
    be called inside `jit`.  A plain function receives NumPy arrays."""

    def __post_init__(self) -> None:
        require("name", self.name, bool(self.name), "a name for reports")
        holds = len(self.digest) == 64 and set(self.digest) <= set("0123456789abcdef")
        require("digest", self.digest, holds, "a sha256: 64 hexadecimal digits")
        require("apply", self.apply, callable(self.apply), "a function of uint8 images")


def of_function(
    function: Callable[[Any], Any],
    name: str | None = None,
    *,
    digest: str | None = None,
    preprocessing: str = "its own",
) -> Extractor:
    """The extractor of a function of images.

    Args:
        function: takes uint8 images [b, h, w, c], a NumPy array, and returns features [b, d], or a pair of features and
            logits [b, k].  It is called outside `jit`.
        name: the name of the extractor; None: that of the function.
        digest: a sha256 that identifies the extractor; None: that of the function's source, which does not cover the
            weights and functions that it uses.
        preprocessing: how the function prepares pixels, in one phrase.

    Returns:
        The extractor.  Its `apply` raises ValueError if the function fails or returns anything else.

    Raises:
        ValueError: the function's source cannot be read, and there is no digest.
    """
    called: str = name or getattr(function, "__name__", type(function).__name__)
    apply = functools.partial(_call, function, called)
    return Extractor(called, digest or _source_digest(function), preprocessing, apply)


def _source_digest(function: Callable[..., Any]) -> str:
    inner: Any = inspect.unwrap(function)
    while isinstance(inner, functools.partial):
        inner = inspect.unwrap(inner.func)
    is_code = inspect.isroutine(inner) or inspect.isclass(inner)
    try:
        source = inspect.getsource(inner if is_code else type(inner))
    except (OSError, TypeError):
        raise ValueError(f"the source of {function!r} cannot be read; define it in a file, or give a digest") from None
    return hashlib.sha256(inspect.cleandoc(source).encode()).hexdigest()


def _call(function: Callable[[Any], Any], name: str, images: Any) -> Extracted:
    """function(images), checked."""
    try:
        found = function(images)
    except Exception as error:  # the user's code may raise anything
        shape = list(np.shape(images))
        raise ValueError(f"{name} fails on images {shape}: {type(error).__name__}: {error}") from error
    features, logits = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    features, logits = _float32(name, features), None if logits is None else _float32(name, logits)
    for array in (features,) if logits is None else (features, logits):
        if array.ndim != 2 or len(array) != len(images):
            expected = f"features [{len(images)}, d], or a pair of features and logits [{len(images)}, k]"
            found = f"{name} returned an array of shape {array.shape} for {len(images)} images"
            raise ValueError(f"{found}; expected {expected}")
    return Extracted(features, logits)


def _float32(name: str, array: Any) -> Any:
    if isinstance(array, jax.Array):
        return array.astype(np.float32)
    try:
        return np.asarray(array, np.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        found = f"a {type(array).__name__}, which is not an array of numbers"
        raise ValueError(f"{name} returned {found} ({error})") from None


@quoted
def extract(extractor: Extractor, images: Any, chunk: Whole = CHUNK, mesh: Mesh | None = None) -> Extracted:
    """The features of images, and their logits if the extractor has some.

    Args:
        extractor: the extractor.
        images: uint8 [n, h, w, c], or an object with a length whose slices are such arrays.
        chunk: images at a time, on each device.  Copies of the last image fill up the last chunk, so that one shape is
            compiled.
        mesh: the devices that share the work; only for extractors with weights.  All processes pass the same images.

    Returns:
        NumPy arrays, float32 [n, d] and [n, k].

    Raises:
        ValueError: there are no images, they are not uint8 [n, h, w, c], or a plain function fails.
    """
    chunk = require_int("chunk", chunk, 1)
    n = len(images)
    require("number of images", n, n >= 1, "at least 1")
    run, count = extractor.apply, 1
    if mesh is not None and not jax.tree_util.all_leaves([run]):  # an extractor with weights: see functions.as_pytree
        run, count, mesh = functions.as_pytree(run), mesh.size, axes.automatic(mesh)
        run = functools.partial(_on_mesh, jax.device_put(axes.relabelled(run, mesh), replicated(mesh)), mesh)
    size = min(chunk, -(-n // count)) * count
    pieces = []
    for start in range(0, n, size):
        block = checked_pixels(images[start : start + size])
        full = np.concatenate([block, np.repeat(block[-1:], size - len(block), 0)]) if len(block) < size else block
        found = run(full)
        pieces.append([None if array is None else fetch_float32(array)[: len(block)] for array in found])
    features, logits = zip(*pieces, strict=True)
    return Extracted(np.concatenate(features), None if logits[0] is None else np.concatenate(logits))


def _on_mesh(apply: Callable[[Any], Extracted], mesh: Mesh, images: np.ndarray) -> Extracted:
    with axes.entered(mesh):
        return apply(global_batch(mesh, {"image": images[local_rows(mesh, len(images))]}, len(images))["image"])


def fetch_float32(array: Any) -> np.ndarray:
    """An array, on this device or sharded over all, as NumPy float32."""
    return np.asarray(fetch(array) if isinstance(array, jax.Array) else array, np.float32)


def checked_pixels(images: Any) -> np.ndarray:
    """The images as a NumPy array; ValueError unless they are uint8 [n, height, width, channels]."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4:
        expected = "uint8 [n, height, width, channels] with values 0..255"
        remedy = "data.images.to_pixels makes them from [-1, 1]"
        raise ValueError(f"images are {images.dtype} {list(images.shape)}; expected {expected}: {remedy}")
    return images


def existing_file(path: str | os.PathLike, what: str) -> Path:
    """Check that a file exists.

    Args:
        path: the file; ~ is the home folder.
        what: the expected content, for the message.

    Returns:
        The path.

    Raises:
        FileNotFoundError: there is no such file.
    """
    found = local_path(path)
    if not found.is_file():
        raise FileNotFoundError(f"there is no file {found}; expected {what}")
    return found
