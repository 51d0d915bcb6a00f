"""The feature extractor that a command line names."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ddpm_jax.diffusion.arrays import Pixels
from ddpm_jax.features.extractor import Extractor, existing_file, of_function
from ddpm_jax.storage import classes, paths

__all__ = ["ACCEPTED", "pixels", "read_extractor"]

ACCEPTED = """\
inception (the network of FID; its weights are downloaded once), inception:PATH (weights in a file), \
PATH.safetensors (a classifier by scripts/train_features.py), FILE.py:NAME (a function or an Extractor) or pixels"""


def read_extractor(text: str) -> Extractor:
    """The extractor that a command line names.

        inception              Inception-v3 as for FID; the weights are downloaded when first used
        inception:PATH         the same network with the weights in a file, .pth or .safetensors
        PATH.safetensors       a classifier trained by scripts/train_features.py
        FILE.py:NAME           a function of uint8 images, or an Extractor, in a Python file, which is executed
        pixels                 the pixels themselves

    Raises:
        ValueError: the text names no extractor, or its file holds something else.
        FileNotFoundError: there is no such file.
        RunError: the weights cannot be downloaded.
    """
    if text == "inception" or text.startswith("inception:"):
        from ddpm_jax.features.inception import load_inception

        return load_inception(text.partition(":")[2] or None)
    if text == "pixels":
        return of_function(pixels, preprocessing="pixels / 255, as they are")
    file, separator, name = text.rpartition(":")
    if separator and file.endswith(".py"):
        return _of_file(paths.local_path(file), name)
    if text.endswith(".safetensors"):
        from ddpm_jax.features.classifier import load_classifier

        return load_classifier(text)
    raise ValueError(f"the features are {text!r}; expected {ACCEPTED}")


def pixels(images: Pixels) -> Float[np.ndarray, "batch d"]:
    """The pixels as features, in [0, 1]; for images so small that a network adds nothing."""
    return np.asarray(images).reshape(len(images), -1) / np.float32(255)


def _of_file(path: Path, name: str) -> Extractor:
    """The function or Extractor called `name` in a Python file; its digest is that of the whole file."""
    existing_file(path, "a Python file with a function of uint8 images, or an Extractor: FILE.py:NAME")
    module = classes.run_file(path)
    found = getattr(module, name, None)
    content = hashlib.sha256(path.read_bytes())
    if isinstance(found, Extractor):  # its own digest may not cover the code in the file
        content.update(found.digest.encode())
        return replace(found, digest=content.hexdigest())
    if not callable(found) or isinstance(found, type):
        names = [key for key, value in vars(module).items() if _is_candidate(value, module.__name__)]
        raise ValueError(f"{path} has no function or Extractor called {name!r}; it has {', '.join(names) or 'none'}")
    return of_function(found, f"{path.name}:{name}", digest=content.hexdigest())


def _is_candidate(value: Any, module: str) -> bool:
    own = callable(value) and not isinstance(value, type) and getattr(value, "__module__", None) == module
    return isinstance(value, Extractor) or own
