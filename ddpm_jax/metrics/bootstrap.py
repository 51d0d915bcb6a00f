"""The standard error of any statistic of n rows: the statistic again for rows drawn anew from them (Efron 1979).

To draw n rows from n with replacement is to give each row a weight, w ~ Multinomial(n; 1/n, ..., 1/n), so a
statistic is a function of weights, n ones where nothing is drawn.  The interval is normal, around the statistic itself,
with the spread of the replicates.  The usual intervals, from the replicates' quantiles, are wrong for distances: drawn
rows are fewer distinct rows, which lie further away, so all replicates are above the statistic; turned around it (the
"basic" interval) they are as far below.  Measured for normal features with d = 32, the share of intervals of level 0.95
that hold the mean of the Frechet distance over samples of n rows:

    n                     24      48      96     320
    quantiles           0.00    0.00    0.00    0.07
    quantiles, basic    0.03    0.02    0.04    0.12
    this file           1.00    1.00    1.00    0.97
    jackknife           0.97    0.97    0.95    0.95

So this file's are safe, but wide: for d = 256 and n = 128 to 1250 the standard error is 2.6 to 5.5 times the true one,
that of `jackknife` 1.2 to 1.4 times.  For the Frechet distance use that; this is for any other statistic.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64

from ddpm_jax.arrays import Rows
from ddpm_jax.check import whole
from ddpm_jax.metrics.estimate import Estimate
from ddpm_jax.metrics.frechet import Moments, root
from ddpm_jax.metrics.rows import checked, same_width

Weights = Float64[np.ndarray, " n"]


def bootstrap(statistic: Callable[[Weights], float], n: int, replicates: int = 50, seed: int = 0) -> Estimate:
    """The statistic of n rows, and the spread of its replicates.

    statistic: of weights [n] that sum to n.  50 replicates know the standard error to 10%.
    """
    whole("n", n, 2)
    whole("replicates", replicates, 2)
    draw = np.random.default_rng(seed)
    values = [statistic(draw.multinomial(n, np.full(n, 1 / n)).astype(np.float64)) for _ in range(replicates)]
    return Estimate(statistic(np.ones(n)), float(np.std(values, ddof=1)))


def weighted_frechet(features: Rows, reference: Moments) -> Callable[[Weights], float]:
    """The Frechet distance of weighted features to the reference, as a function of the weights.

    Holds 2 n d numbers.  With X the weighted rows less their mean, the trace of the root of R C R is the sum of the
    singular values of X R / sqrt(n - 1), from the smaller of its two Gram matrices.
    """
    same_width("features", features, "reference", reference.mean[None], least=1)
    rows = checked("features", features[:]).astype(np.float64) - reference.mean
    turned, trace = rows @ root(reference.cov), np.trace(reference.cov)

    def distance(weights: Weights) -> float:
        n, drawn = weights.sum(), weights > 0
        w = weights[drawn, None]
        mean, turned_mean = ((w * x[drawn]).sum(0) / n for x in (rows, turned))
        x = np.sqrt(w / (n - 1)) * (turned[drawn] - turned_mean)
        gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
        cross = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0)).sum()
        spread = np.sum(w * (rows[drawn] - mean) ** 2) / (n - 1)
        return float(max(mean @ mean + spread + trace - 2 * cross, 0.0))

    return distance
