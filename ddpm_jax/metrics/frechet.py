"""The Frechet distance of two sets of features, each taken as a normal distribution (Heusel et al. 2017, 1706.08500).

    d^2 = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))

With Inception-v3 features of 50,000 images this is FID; with others, or fewer, it is another number, and only to
be compared with itself.  It falls with the number of images: a finite sample has a covariance of its own.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64


@dataclass(frozen=True)
class Moments:
    """The mean [D] and covariance [D, D] of features, float64."""

    mean: Float64[np.ndarray, " D"]
    cov: Float64[np.ndarray, "D D"]


def moments(features: Float[np.ndarray, "n D"]) -> Moments:
    """The mean and the unbiased covariance of n >= 2 feature vectors.

    Raises ValueError where one of them is not finite.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features have shape {features.shape}; expected [n, D] with n >= 2")
    wrong = np.flatnonzero(~np.isfinite(features).all(1))
    if wrong.size:
        raise ValueError(f"the features of image {wrong[0]} are not all finite ({wrong.size} such images)")
    return Moments(features.mean(0), np.atleast_2d(np.cov(features, rowvar=False)))


def frechet_distance(a: Moments, b: Moments) -> float:
    """d^2, 0 for equal moments.

    The trace of the root of a product of covariances is that of the root of R C_b R, R^2 = C_a, which is symmetric:
    two eigenvalue problems, finite also where a covariance is singular.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of sizes {len(a.mean)} and {len(b.mean)} cannot be compared")
    values, vectors = np.linalg.eigh(a.cov)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b.cov @ root), 0.0)).sum()
    distance = np.sum((a.mean - b.mean) ** 2) + np.trace(a.cov) + np.trace(b.cov) - 2.0 * cross
    return float(max(distance, 0.0))
