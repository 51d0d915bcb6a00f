"""The kernel distance, KID with Inception-v3 features (Binkowski et al. 2018, 1801.01401).

    k(x, y) = (gamma x . y + coef0)^degree,    gamma = 1/d, coef0 = 1, degree = 3

    MMD^2 = sum_{i != j} k(x_i, x_j) / (m (m - 1)) + sum_{i != j} k(y_i, y_j) / (m (m - 1)) - 2 sum_ij k(x_i, y_j) / m^2

is unbiased for m rows of each set: its mean does not depend on m, and for equal distributions it is 0, so it may be
negative.  The distance is the mean of S such numbers, each of m rows drawn without replacement from n_x and n_y.

The standard error.  The spread of the S numbers (what torch-fidelity prints after its "+-") is how far the number of
*one* subset of m rows goes; it does not shrink with S or n.  Divided by sqrt(S) it would be too small, for subsets
share rows.  With a(x) = E k(x, x') - E k(x, y), b(y) = E k(y, y') - E k(x, y), and e what of k is no sum of functions
of its two arguments, the parts of MMD^2 are uncorrelated (Hoeffding 1948), so that of all n_x and n_y rows has exactly

    V = 4 var(a) / n_x + 4 var(b) / n_y
        + 2 E e_xx^2 / (n_x (n_x - 1)) + 2 E e_yy^2 / (n_y (n_y - 1)) + 4 E e_xy^2 / (n_x n_y)

for variance.  The mean over S subsets, whose expectation given the rows is that MMD^2, has

    V + E var(subset | rows) / S.

E e^2 is the sum of squares that a two-way fit leaves of a subset's kernels, over its degrees of freedom, m (m - 3) for
xx and (m - 1)^2 for xy; var(a) that of the fitted effects, less what the residuals add to it, E e_xx^2 / (m - 2) +
E e_xy^2 / m.  These are unbiased; their mean over subsets is used.  E var(subset | rows) is that of the S numbers.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64

from ddpm_jax.arrays import Rows
from ddpm_jax.check import require, whole
from ddpm_jax.metrics.estimate import Estimate
from ddpm_jax.metrics.rows import centred, checked, middle, same_width


@dataclass(frozen=True)
class Polynomial:
    """k(x, y) = (gamma x . y + coef0)^degree."""

    degree: int = 3
    gamma: float | None = None
    """None: 1/d."""
    coef0: float = 1.0

    def __post_init__(self) -> None:
        whole("degree", self.degree, 1)
        require("gamma", self.gamma, self.gamma is None or self.gamma > 0, "a number above 0, or None for 1/d")

    def beyond(
        self, x: Float32[Array, "m d"], y: Float32[Array, "n d"], o: Float32[Array, " d"]
    ) -> Float32[Array, "m n"]:
        """k(x + o, y + o) - k(o, o), as sum_q binomial(degree, q) k_o^(degree - q) s^q over q = 1..degree.

        s is gamma (x . y + x . o + o . y), and k_o the base of the power at o: so a far origin costs no digits.
        """
        gamma = 1.0 / x.shape[1] if self.gamma is None else self.gamma
        dot = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        base, s = gamma * dot(o, o) + self.coef0, gamma * (dot(x, y.T) + dot(x, o)[:, None] + dot(y, o)[None])
        result = jnp.zeros_like(s)
        for q in range(self.degree, 0, -1):
            result = (result + math.comb(self.degree, q) * base ** (self.degree - q)) * s
        return result


@dataclass(frozen=True)
class KernelDistance(Estimate):
    """The mean over subsets, and its standard error over draws of all the rows and of the subsets."""

    subsets: Float64[np.ndarray, " S"]
    """MMD^2 of each."""

    @property
    def spread(self) -> float:
        """The standard deviation of MMD^2 over subsets: torch-fidelity's `kernel_inception_distance_std`."""
        return float(np.std(self.subsets))


def kernel_distance(
    x: Rows,
    y: Rows,
    subsets: int = 100,
    subset_size: int = 1000,
    kernel: Polynomial = Polynomial(),
    seed: int = 2020,
) -> KernelDistance:
    """The kernel distance of two sets of four rows or more; memory O(subset_size (subset_size + d)).

    Subsets are drawn as torch-fidelity draws them: the same rows for the same seed.  Where a set is smaller than
    subset_size, subsets are as large as the smaller set.
    """
    same_width("x", x, "y", y, least=4)
    whole("subsets", subsets, 2)
    whole("subset_size", subset_size, 4)
    size = min(subset_size, len(x), len(y))
    draw = np.random.RandomState(seed)
    parts = []
    for _ in range(subsets):
        i, j = (np.sort(draw.choice(len(rows), size, replace=False)) for rows in (x, y))
        parts.append(mmd2(checked("x", x[i], i), checked("y", y[j], j), kernel))
    values = np.array([part.value for part in parts])
    components = np.mean([part.components for part in parts], axis=0)
    variance = max(_variance(components, len(x), len(y)), 0.0) + values.var(ddof=1) / subsets
    return KernelDistance(float(values.mean()), float(np.sqrt(variance)), values)


class Mmd2(NamedTuple):
    """MMD^2 of m rows of each set, and unbiased estimates of what its variance is made of."""

    value: float
    components: Float64[np.ndarray, " 5"]
    """var a, var b, E e_xx^2, E e_yy^2, E e_xy^2."""


def mmd2(x: Float[np.ndarray, "m d"], y: Float[np.ndarray, "m d"], kernel: Polynomial = Polynomial()) -> Mmd2:
    """MMD^2 of two sets of m rows, all at once: memory O(m^2)."""
    origin = middle(y, len(y))
    sums = _sums(centred(x, origin), centred(y, origin), jnp.asarray(origin), kernel)
    xx, yy, of_x, of_y, *squares = (np.asarray(value, np.float64) for value in sums)
    m = len(x)
    value = (xx.sum() + yy.sum()) / (m * (m - 1)) - 2 * of_x.sum() / m**2
    e_xx, e_yy, e_xy = np.array(squares) / [m * (m - 3), m * (m - 3), (m - 1) ** 2]
    var_a = np.var(xx / (m - 2) - of_x / m, ddof=1) - e_xx / (m - 2) - e_xy / m
    var_b = np.var(yy / (m - 2) - of_y / m, ddof=1) - e_yy / (m - 2) - e_xy / m
    return Mmd2(float(value), np.array([var_a, var_b, e_xx, e_yy, e_xy]))


@partial(jax.jit, static_argnums=3)
def _sums(x: Float32[Array, "m d"], y: Float32[Array, "m d"], origin: Float32[Array, " d"], kernel: Polynomial) -> Any:
    """Sums of k over each row of xx and yy (without i = j), of xy and yx, and of the squares of their residuals.

    All less the mean of k(x, y), which cancels in MMD^2, where float32 would lose digits to it.
    """
    xx, yy, xy = (kernel.beyond(*pair, origin) for pair in ((x, x), (y, y), (x, y)))
    others, shift = 1.0 - jnp.eye(len(x)), xy.mean()
    xx, yy, xy = others * (xx - shift), others * (yy - shift), xy - shift
    squares = [_residual(xx, others), _residual(yy, others)]
    fit = xy.mean(1)[:, None] + xy.mean(0)[None] - xy.mean()
    return xx.sum(1), yy.sum(1), xy.sum(1), xy.sum(0), *squares, jnp.sum((xy - fit) ** 2)


def _residual(k: Float32[Array, "m m"], others: Float32[Array, "m m"]) -> Float32[Array, ""]:
    """The sum of squares of k_ij - mean - effect_i - effect_j over i != j."""
    m = len(k)
    mean = k.sum() / (m * (m - 1))
    effect = (k.sum(1) - (m - 1) * mean) / (m - 2)
    return jnp.sum((others * (k - mean - effect[:, None] - effect[None])) ** 2)


def _variance(components: Float64[np.ndarray, " 5"], n_x: int, n_y: int) -> float:
    """V, for n_x and n_y rows."""
    var_a, var_b, e_xx, e_yy, e_xy = components
    first = 4 * var_a / n_x + 4 * var_b / n_y
    return float(first + 2 * e_xx / (n_x * (n_x - 1)) + 2 * e_yy / (n_y * (n_y - 1)) + 4 * e_xy / (n_x * n_y))
