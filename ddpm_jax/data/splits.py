"""The images of a data set that a run did not learn from."""

import dataclasses
from typing import Any

from ddpm_jax.data.source import Source, split_of
from ddpm_jax.data.sources import Npz, image_shape

# What held-out images are called, the likelier first.
HELD_OUT = ("test", "validation", "val")


def held_out_split(source: Source) -> Source | None:
    """The split called test or validation of the data that a source is another split of; None where there is none.

    A split is told by a field `split`, or, of an .npz, by the name of the array: train_images, test_images.
    """
    for name in HELD_OUT:
        changes = _renamed(source, name)
        if changes is None:
            return None
        try:
            other: Any = dataclasses.replace(source, **changes)  # pyright: ignore[reportArgumentType]
            image_shape(other)
        except (ValueError, OSError, TypeError):  # there is none of this name
            continue
        return other
    return None


def _renamed(source: Any, name: str) -> dict[str, str] | None:
    """The fields that would make another split of a source; None where it says of no split, or is held out itself."""
    if isinstance(source, Npz) and source.images.startswith("train"):
        fields = {"images": source.images, "labels": source.labels}
        return {field: value.replace("train", name, 1) for field, value in fields.items() if value is not None}
    split = split_of(source)
    if not dataclasses.is_dataclass(source) or split is None or any(held in split for held in HELD_OUT):
        return None
    return {"split": name}
