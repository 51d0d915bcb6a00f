"""The standard error of a Frechet distance: the distance again without each of the n rows in turn (Tukey 1958).

    V = (n - 1) / n  sum_i (d_-i^2 - mean)^2

estimates the variance of d^2 over samples of n rows.  Its mean is not too small (Efron and Stein 1981), whatever the
features are: sqrt(V) is right for n far above d, and otherwise up to 1.4 times too large (measured).  The interval
d^2 -+ 1.96 sqrt(V) covers the *mean of d^2 over samples of n rows*.  It does not cover the bias (d^2 falls with the
number of rows) or the randomness of the reference, which is held fixed.

The bootstrap does not work here: rows drawn with replacement are fewer distinct rows, which are further from the
reference, so the replicates lie above d^2.

All n distances come from one eigenvalue problem.  Without row x_i the scatter S = sum (x - m)(x - m)^T loses
c u u^T, u = x_i - m, c = n / (n - 1).  With R^2 = C_reference, R S R = V diag(lambda) V^T and w = V^T R u, the trace of
the root of R S R loses (the root as an integral of resolvents, and the formula of Sherman and Morrison)

    (1 / pi) integral_0^inf sqrt(s) c q_2(s) / (1 - c q_1(s)) ds,    q_k(s) = sum_j w_j^2 / (lambda_j + s)^k

    1 - c q_1(s) = 1 - c q_1(0) + c s sum_j w_j^2 / (lambda_j (lambda_j + s))

Here 1 - c q_1(0) >= 0 is 0 for n <= d + 1, when the rank falls by one without a row.  On a uniform grid of log s the
trapezoidal rule converges exponentially: the distances are accurate to 1e-7.
"""

import numpy as np
from jaxtyping import Float64

from ddpm_jax.diffusion.arrays import Rows
from ddpm_jax.errors import require
from ddpm_jax.metrics.estimate import Estimate
from ddpm_jax.metrics.feature_rows import blocks, width
from ddpm_jax.metrics.frechet import Moments, frechet_distance, moments, root

__all__ = ["frechet_estimate", "leave_one_out"]

NODES = 128  # of the integral


def frechet_estimate(features: Rows, reference: Moments, block: int = 1024) -> Estimate:
    """The Frechet distance of features to a reference, and its standard error over samples of n rows.

    This costs a few Frechet distances, and 128 multiplications for each entry of the rows; memory O(d^2).

    Args:
        features: rows [n, d], n >= 3.
        reference: the moments of the reference.
        block: rows read at a time.

    Returns:
        The estimate.

    Raises:
        ValueError: the widths differ, or a row is not finite.
    """
    own = moments(features)
    without = leave_one_out(features, own, reference, block)
    n = len(without)
    return Estimate(frechet_distance(own, reference), float(np.sqrt((n - 1) * without.var())))


def leave_one_out(features: Rows, own: Moments, reference: Moments, block: int = 1024) -> Float64[np.ndarray, " n"]:
    """The Frechet distance of the features without row i, for every i.

    Args:
        features: rows [n, d], n >= 3.
        own: the moments of the features.
        reference: the moments of the reference.
        block: rows read at a time.

    Returns:
        The n distances d^2.

    Raises:
        ValueError: the widths differ, or a row is not finite.
    """
    d, n = width("features", features, least=3), len(features)
    require("the width of reference", len(reference.mean), len(reference.mean) == d, f"{d}, that of features")
    r, scatter, c = root(reference.cov), own.cov * (n - 1), n / (n - 1)
    values, vectors = np.linalg.eigh(r @ scatter @ r)
    kept = np.arange(d)[-min(n - 1, d) :]
    kept = kept[values[kept] > d * np.finfo(np.float64).eps * values[-1]]
    values, turn = values[kept], (r @ vectors)[:, kept]
    trace, cross, shift = np.trace(scatter), np.sqrt(values).sum(), own.mean - reference.mean
    result = np.empty(n)
    for start, rows in blocks("features", features, block):
        u = rows.astype(np.float64) - own.mean
        means = np.sum((shift - u / (n - 1)) ** 2, 1)
        traces = (trace - c * np.sum(u**2, 1)) / (n - 2) + np.trace(reference.cov)
        roots = (cross - _loss((u @ turn) ** 2, values, c, n <= len(kept) + 1)) / np.sqrt(n - 2)
        result[start : start + len(rows)] = means + traces - 2 * roots
    return result


def _loss(
    w2: Float64[np.ndarray, "m r"], values: Float64[np.ndarray, " r"], c: float, singular: bool
) -> Float64[np.ndarray, " m"]:
    """The decrease of the trace of the root for each row: the integral, with s = e^t.  singular: 1 - c q_1(0) is 0."""
    if not len(values):
        return np.zeros(len(w2))
    t, step = np.linspace(np.log(values[0]) - 40, np.log(values[-1]) + 40, NODES, retstep=True)
    s = np.exp(t)
    left = np.zeros(len(w2)) if singular else np.maximum(1 - c * (w2 / values).sum(1), 0.0)
    inverse = 1 / (values[:, None] + s)
    below = left[:, None] + c * s * (w2 @ (inverse / values[:, None]))
    above = s**1.5 * c * (w2 @ inverse**2)
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0).sum(1) * step / np.pi
