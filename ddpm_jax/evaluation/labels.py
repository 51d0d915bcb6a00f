"""The labels of the samples of a class-conditional run.

Scores compare two sets of images, so each class should be as frequent among the samples as in the reference.  Standard
errors are estimated for independent images.  Therefore the label of image i is random, a function of (key, i) alone,
drawn from class counts: those of the reference; if it has no labels, those of the training data; or else equal ones.

Class-balanced labels (all classes in turn) make images that are not independent; `metrics.kernel` takes this into
account.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Int32

from ddpm_jax.diffusion.arrays import Key, example_keys, stream

__all__ = ["BALANCED", "ClassCounts"]

BALANCED = "all classes in turn"


@dataclass(frozen=True)
class ClassCounts:
    """The number of images of each class in some data."""

    counts: tuple[int, ...]
    of: str
    """The name of the data."""

    @property
    def conditions(self) -> dict[str, Any]:
        """All that the label of an image depends on, except its key, with a description for a reader."""
        return {"how": f"each drawn from the class frequencies of {self.of}", "counts": list(self.counts)}

    def draw(self, key: Key, first_index: int, n: int) -> Int32[np.ndarray, " n"]:
        """The labels of images first_index, ..., first_index + n - 1.

        Args:
            key: the key of the sequence of images.
            first_index: the number of the first image.
            n: the number of images.
        """
        keys = example_keys(stream(key, "label"), first_index, n)
        uniform = np.asarray(jax.vmap(jax.random.uniform)(keys), np.float64)
        edges = np.cumsum(self.counts)
        return np.searchsorted(edges, np.floor(uniform * edges[-1]), side="right").astype(np.int32)
