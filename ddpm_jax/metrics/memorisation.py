"""Whether samples are copies of training images: whether they lie closer to those than held-out images do.

Let u_1..u_n be the distances of n samples to their nearest training image, v_1..v_m those of m held-out images, and
v_(r) the r-th smallest of v.

    fraction = (number of i with u_i < v_(r)) / n

If samples and held-out images have the same distribution, F(v_(r)) ~ Beta(r, m + 1 - r) for continuous distances of any
distribution F.  So with p = r / (m + 1)

    E fraction = p,    var fraction = p (1 - p) ((m + 1) / n + 1) / (m + 2)

A fraction well above p means copies, or samples that are all typical.  Only distances count: samples far from every
image are not memorised, but they are not good either.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ddpm_jax.errors import require

__all__ = ["Memorisation", "memorisation"]


class Memorisation(NamedTuple):
    """The fraction of samples that lie closer to the training images than held-out images do."""

    fraction: float
    """The fraction of samples below the threshold."""
    standard_error: float
    """The standard error of the fraction for this threshold: sqrt(f (1 - f) / n)."""
    expected: float
    """The mean of the fraction for samples that are as far from the training images as held-out images."""
    expected_spread: float
    """The standard deviation of the fraction in that case."""
    threshold: float
    """The distance below which a fraction `expected` of held-out images lies."""


def memorisation(
    sample_distances: Float[np.ndarray, " n"], held_out_distances: Float[np.ndarray, " m"], quantile: float = 0.01
) -> Memorisation:
    """The fraction of samples closer to a training image than a quantile of held-out images.

    Distances are those to the nearest training image, `neighbours(features, training).distances[:, 0]`, with the same
    training images for both arguments.

    Args:
        sample_distances: those of the samples.
        held_out_distances: those of the held-out images.
        quantile: the fraction of held-out images below the threshold.

    Returns:
        The fraction, and its expected value for samples without copies.

    Raises:
        ValueError: distances are missing, negative or not finite, or the quantile is not between 0 and 1.
    """
    sample, held = (np.asarray(values, np.float64) for values in (sample_distances, held_out_distances))
    require("quantile", quantile, 0 < quantile < 1, "a number between 0 and 1")
    for name, values in (("sample_distances", sample), ("held_out_distances", held)):
        require(f"the shape of {name}", values.shape, values.ndim == 1 and values.size > 0, "[n] with n >= 1")
        require(name, float(values.min()), bool(np.isfinite(values).all() and values.min() >= 0), "finite, 0 or more")
    n, m = len(sample), len(held)
    rank = min(max(round(quantile * (m + 1)), 1), m)
    p, threshold = rank / (m + 1), float(np.sort(held)[rank - 1])
    # If held-out images are exact copies themselves, samples that are exact copies count too.
    fraction = float(np.mean(sample < threshold if threshold > 0 else sample == 0))
    spread = math.sqrt(p * (1 - p) * ((m + 1) / n + 1) / (m + 2))
    return Memorisation(fraction, math.sqrt(fraction * (1 - fraction) / n), p, spread, threshold)
