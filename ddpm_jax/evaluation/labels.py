"""The labels that the samples of a class-conditional run are drawn with.

Scores compare two sets of images, so the samples' classes should be as frequent as the reference's; and an error is
estimated from independent images.  So image i gets a label of its own, a function of (key, i) alone, drawn from class
counts: those of the reference, or where it has no labels those of the training data, or else equal ones.

Class-balanced labels (all classes in turn) make images that are not independent; `metrics.kernel` must be told.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Int32

from ddpm_jax.diffusion.arrays import Key, example_keys, stream

BALANCED = "all classes in turn"


@dataclass(frozen=True)
class ClassCounts:
    """How often each class occurs, and where."""

    counts: tuple[int, ...]
    of: str
    """The data, in a few words."""

    @property
    def conditions(self) -> dict[str, Any]:
        """What an image's label depends on, beside its key, and how a person is told."""
        return {"how": f"each drawn from the class frequencies of {self.of}", "counts": list(self.counts)}

    def draw(self, key: Key, first_index: int, n: int) -> Int32[np.ndarray, " n"]:
        """The labels of images first_index, ..., first_index + n - 1 of the sequence of `key`."""
        keys = example_keys(stream(key, "label"), first_index, n)
        uniform = np.asarray(jax.vmap(jax.random.uniform)(keys), np.float64)
        edges = np.cumsum(self.counts)
        return np.searchsorted(edges, np.floor(uniform * edges[-1]), side="right").astype(np.int32)
