"""Whether samples are copies of training images: do they lie closer to those than new images do?

Let u_1..u_n be the distances of n samples to their nearest training image, v_1..v_m those of m images that were held
out of the training, and v_(r) the r-th smallest of these.

    fraction = (number of i with u_i < v_(r)) / n

If samples and held-out images were alike, then F(v_(r)) ~ Beta(r, m + 1 - r) for continuous distances of any
distribution F, so that with p = r / (m + 1)

    E fraction = p,    var fraction = p (1 - p) ((m + 1) / n + 1) / (m + 2)

A fraction well above p means copies, or samples of nothing but the typical.  It is a matter of distances alone:
samples far from every image are not memorised, and not good either.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ddpm_jax.errors import require


class Memorisation(NamedTuple):
    """How many samples lie closer to the training images than images that were held out do."""

    fraction: float
    """The share of samples below the threshold."""
    standard_error: float
    """Of the fraction, over samples, for this threshold: sqrt(f (1 - f) / n)."""
    expected: float
    """The fraction's mean for samples that are as far from the training images as held-out images are."""
    expected_spread: float
    """The fraction's standard deviation in that case."""
    threshold: float
    """The distance that a share `expected` of held-out images is below."""


def memorisation(
    sample_distances: Float[np.ndarray, " n"], held_out_distances: Float[np.ndarray, " m"], quantile: float = 0.01
) -> Memorisation:
    """The share of samples closer to a training image than all but a `quantile` of held-out images are.

    Both are distances to the nearest training image, `neighbours(features, training).distances[:, 0]`, of the same
    training images.
    """
    sample, held = (np.asarray(values, np.float64) for values in (sample_distances, held_out_distances))
    require("quantile", quantile, 0 < quantile < 1, "a number between 0 and 1")
    for name, values in (("sample_distances", sample), ("held_out_distances", held)):
        require(f"the shape of {name}", values.shape, values.ndim == 1 and values.size > 0, "[n] with n >= 1")
        require(name, float(values.min()), bool(np.isfinite(values).all() and values.min() >= 0), "finite, 0 or more")
    n, m = len(sample), len(held)
    rank = min(max(round(quantile * (m + 1)), 1), m)
    p, threshold = rank / (m + 1), float(np.sort(held)[rank - 1])
    # Where held-out images are exact copies themselves, samples that are count too.
    fraction = float(np.mean(sample < threshold if threshold > 0 else sample == 0))
    spread = math.sqrt(p * (1 - p) * ((m + 1) / n + 1) / (m + 2))
    return Memorisation(fraction, math.sqrt(fraction * (1 - fraction) / n), p, spread, threshold)
