"""Held-out images: the parts of a data set that a run did not learn from."""

import dataclasses
from typing import Any

from ddpm_jax.data.source import Source, split_of
from ddpm_jax.data.sources import Npz, image_shape

__all__ = ["held_out_split"]

# The names of held-out splits, the most likely first.
HELD_OUT = ("test", "validation", "val")


def held_out_split(source: Source) -> Source | None:
    """The test or validation split of the data set of a source; None if there is none.

    A field `split` names a split; in an .npz file the name of the array does: train_images, test_images.
    """
    for name in HELD_OUT:
        changes = _renamed(source, name)
        if changes is None:
            return None
        try:
            other: Any = dataclasses.replace(source, **changes)  # pyright: ignore[reportArgumentType]
            image_shape(other)
        except (ValueError, OSError, TypeError):  # there is no such split
            continue
        return other
    return None


def _renamed(source: Any, name: str) -> dict[str, str] | None:
    """The fields of another split of a source; None if the source names no split, or is held out itself."""
    if isinstance(source, Npz) and source.images.startswith("train"):
        fields = {"images": source.images, "labels": source.labels}
        return {field: value.replace("train", name, 1) for field, value in fields.items() if value is not None}
    split = split_of(source)
    if not dataclasses.is_dataclass(source) or split is None or any(held in split for held in HELD_OUT):
        return None
    return {"split": name}
