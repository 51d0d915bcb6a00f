"""The kernel distance, KID with Inception-v3 features (Binkowski et al. 2018, 1801.01401).

    k(x, y) = (gamma x . y + coef0)^degree,    gamma = 1/d, coef0 = 1, degree = 3

    MMD^2 = sum_{i != j} k(x_i, x_j) / (m (m - 1)) + sum_{i != j} k(y_i, y_j) / (m (m - 1)) - 2 sum_ij k(x_i, y_j) / m^2

is unbiased for m independent rows of each set: its mean does not depend on m, and is 0 for equal distributions, so the
number may be negative.  The distance is the mean of S such numbers, each of m rows drawn without replacement from n_x
and n_y rows.  Everything is computed in float64.

**Strata.**  Rows are not independent if the number of rows of each class was fixed beforehand, as for class-balanced
samples, or samples whose labels follow the class frequencies of the reference.  Then pairs of one class are too rare,
and the first sum has the mean |mu|^2 - (sum_c p_c |mu_c|^2 - |mu|^2) / (n - 1), with mu_c the mean of class c in the
feature space of the kernel and p_c its fraction of the n rows.  The unbiased estimate is

    |mu|^2 = sum_{c != d} p_c p_d mean k(x of c, x of d) + sum_c p_c^2 mean k(x of c, another x of c)

which is the first sum for a single class.  A subset may hold too few rows of some of many classes; the estimate then is
U + (W - U) / n, with U the first sum, and W the mean of k over pairs of one class with weights p_c.

**The standard error.**  The spread of the S numbers (which torch-fidelity prints after "+-") is the standard deviation
for *one* subset of m rows; it does not shrink with S or n.  Divided by sqrt(S) it would be too small, because subsets
share rows.  Let phi be the features of the kernel, r the phi of a row minus the mean of its stratum (or minus the mean,
without strata), a(x) = r_x . (mu_x - mu_y), and b(y) likewise.  The parts of MMD^2 are uncorrelated (Hoeffding 1948).
So the MMD^2 of all n_x and n_y rows has the variance

    V = 4 var(a) / n_x + 4 var(b) / n_y
        + 2 E (r_x . r_x')^2 / (n_x (n_x - 1)) + 2 E (r_y . r_y')^2 / (n_y (n_y - 1)) + 4 E (r_x . r_y)^2 / (n_x n_y)

The first line is 0 for equal distributions.  The expectation of the mean over S subsets, given the rows, is that MMD^2,
so the mean has the variance V + E var(subset | rows) / S.

Each part is estimated without bias from differences of two rows of a stratum, delta = phi(x_i) - phi(x_i'), in which
the mean of the stratum cancels.  If all rows are distinct, E (delta_i . delta_j)^2 = 4 E (r . r')^2, and delta . (mean
of the other x - mean of y) has the variance 2 var(a) + 2 E (r_x . r_x')^2 / m + 2 E (r_x . r_y)^2 / m.  Each row is
paired with the next row of its stratum, in random order; the estimates are averaged over subsets.

A negative estimate of the first line is replaced by 0.  So the standard error is at least that of the second line.  For
equal distributions it is a fifth too large (more for a few tens of rows): 1% of the intervals miss 0, not 5%.
E var(subset | rows) is estimated by the variance of the S numbers, times (S - 1) / (S - 3), that of Student's t.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int

from ddpm_jax.diffusion.arrays import Rows
from ddpm_jax.errors import check_fields, require, require_int
from ddpm_jax.metrics.estimate import Estimate
from ddpm_jax.metrics.feature_rows import blocks, same_width

__all__ = ["KernelDistance", "Mmd2", "Polynomial", "kernel_distance", "mmd2"]

FEW_OF_A_STRATUM = 20  # if so many are expected, hardly any subset has fewer than two
Labels = Int[np.ndarray, " _"] | Sequence[int]


@dataclass(frozen=True)
class Polynomial:
    """k(x, y) = (gamma x . y + coef0)^degree."""

    degree: int = 3
    gamma: float | None = None
    """None: 1/d."""
    coef0: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        require_int("degree", self.degree, 1)
        require("gamma", self.gamma, self.gamma is None or self.gamma > 0, "a number above 0, or None for 1/d")

    def beyond(
        self, x: Float64[np.ndarray, "m d"], y: Float64[np.ndarray, "n d"], o: Float64[np.ndarray, " d"]
    ) -> Float64[np.ndarray, "m n"]:
        """k(x + o, y + o) - k(o, o), which keeps its digits for a distant origin o.

        The result is sum_q binomial(degree, q) k_o^(degree - q) s^q over q = 1..degree, with
        s = gamma (x . y + x . o + o . y) and k_o = gamma o . o + coef0.

        Args:
            x: rows [m, d].
            y: rows [n, d].
            o: the origin [d].

        Returns:
            The values of all pairs, [m, n].
        """
        gamma = 1.0 / x.shape[1] if self.gamma is None else self.gamma
        base, s = gamma * (o @ o) + self.coef0, gamma * (x @ y.T + (x @ o)[:, None] + y @ o)
        result = np.zeros_like(s)
        for q in range(self.degree, 0, -1):
            result += math.comb(self.degree, q) * base ** (self.degree - q)
            result *= s
        return result


@dataclass(frozen=True)
class KernelDistance(Estimate):
    """The mean over subsets, and its standard error over draws of the rows and of the subsets."""

    subsets: Float64[np.ndarray, " S"]
    """MMD^2 of each subset."""

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
    *,
    x_strata: Labels | None = None,
    y_strata: Labels | None = None,
) -> KernelDistance:
    """The kernel distance of two sets of features, and its standard error; memory O(subset_size (subset_size + d)).

    Subsets are drawn as in torch-fidelity: the same rows for the same seed.

    Args:
        x: rows [n_x, d], four or more.
        y: rows [n_y, d], four or more.
        subsets: the number of subsets, 2 or more; the standard error is rough for fewer than 4.
        subset_size: rows of each set in a subset, 4 or more; at most the size of the smaller set is used.
        kernel: the kernel.
        seed: the seed of the subsets, and of the pairs for the standard error.
        x_strata: the class of each row of x, if the number of rows of each class was fixed beforehand (see the
            docstring of this module); None: the rows are independent, as those with random labels are.
        y_strata: the same for y.

    Returns:
        The distance.

    Raises:
        ValueError: a row is not finite, whether a subset holds it or not, or so large that float64 overflows.
    """
    same_width("x", x, "y", y, least=4)
    require_int("subsets", subsets, 2)
    require_int("subset_size", subset_size, 4)
    strata = [_strata("x_strata", x_strata, len(x)), _strata("y_strata", y_strata, len(y))]
    size = min(subset_size, len(x), len(y))
    largest = max(_largest("x", x, size), _largest("y", y, size))
    draw, shuffle = np.random.RandomState(seed), np.random.default_rng(seed)
    parts = []
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(subsets):
            chosen = [np.sort(draw.choice(len(rows), size, replace=False)) for rows in (x, y)]
            sets = zip((x, y), strata, chosen, strict=True)
            of_x, of_y = (Drawn.of(np.asarray(rows[i]), of, i, shuffle) for rows, of, i in sets)
            parts.append(_mmd2(of_x, of_y, kernel))
        values = np.array([part.value for part in parts])
        of_subsets = values.var(ddof=1) / subsets * (subsets - 1) / max(subsets - 3, 1)
        variance = _variance(np.mean([part.components for part in parts], axis=0), len(x), len(y)) + of_subsets
    expected = f"smaller numbers: the squares of the values of {kernel} must fit into float64"
    require("the largest feature", largest, bool(np.isfinite(variance)), expected)
    return KernelDistance(float(values.mean()), float(np.sqrt(variance)), values)


def _largest(name: str, rows: Rows, block: int) -> float:
    """The largest absolute value of the rows; ValueError if a row is not finite."""
    return max(float(np.abs(part).max()) for _, part in blocks(name, rows, block))


def _strata(name: str, labels: Labels | None, count: int) -> Int[np.ndarray, " n"]:
    """The stratum of each row, 0, 1, ...; 0 for all rows if `labels` is None."""
    if labels is None:
        return np.zeros(count, int)
    given = np.asarray(labels)
    holds = given.shape == (count,) and np.issubdtype(given.dtype, np.integer)
    require(name, f"{given.dtype} {given.shape}", holds, f"integers ({count},), one for each row")
    return np.unique(given, return_inverse=True)[1]


@dataclass(frozen=True, eq=False)
class Drawn:
    """The m rows of one set in a subset, sorted by stratum and in random order within a stratum."""

    rows: Float64[np.ndarray, "m d"]
    strata: Int[np.ndarray, " m"]
    count: int
    """The number of rows of the whole set."""
    weights: Float64[np.ndarray, " m"]
    """The fraction of each stratum in the whole set, divided among its rows, or 1/m if `rare`; their sum is 1."""
    rare: bool
    """Whether a subset may hold fewer than two rows of some stratum."""

    @classmethod
    def of(cls, rows: np.ndarray, strata: np.ndarray, chosen: np.ndarray, shuffle: np.random.Generator) -> "Drawn":
        """The rows of a subset.

        Args:
            rows: the rows, [m, d].
            strata: the strata of the whole set, [n].
            chosen: the indices of the rows in the set, [m].
            shuffle: orders the rows of a stratum.

        Returns:
            The rows with their strata and weights.
        """
        own, m = strata[chosen], len(chosen)
        order = np.lexsort((shuffle.random(m), own))
        rows, own = rows[order].astype(np.float64), own[order]
        shares, counts = np.bincount(strata) / len(strata), np.bincount(own)
        rare = len(shares) > 1 and bool(m * shares.min() < FEW_OF_A_STRATUM or counts.min() < 2)
        weights = np.full(m, 1 / m) if rare else shares[own] / counts[own]
        return cls(rows, own, len(strata), weights, rare)

    @property
    def pairs(self) -> Float64[np.ndarray, " pairs"]:
        """1 if rows i and i + 1 belong to one stratum, otherwise 0, for i = 0..m-2."""
        found = np.diff(self.strata) == 0
        return found.astype(np.float64) if found.sum() >= 4 else np.ones(len(found))  # overestimates the error


class Mmd2(NamedTuple):
    """MMD^2 of m rows of each set, and unbiased estimates of the parts of its variance."""

    value: float
    components: Float64[np.ndarray, " 5"]
    """var(a), var(b), E (r_x . r_x')^2, E (r_y . r_y')^2, E (r_x . r_y)^2."""


def mmd2(x: Float[np.ndarray, "m d"], y: Float[np.ndarray, "m d"], kernel: Polynomial = Polynomial()) -> Mmd2:
    """MMD^2 of two sets of independent rows, all at once: memory O(m^2).

    Args:
        x: rows [m, d].
        y: rows [m, d].
        kernel: the kernel.

    Returns:
        MMD^2 and the parts of its variance.
    """
    shuffle = np.random.default_rng(0)
    of_x, of_y = (Drawn.of(rows, np.zeros(len(rows), int), np.arange(len(rows)), shuffle) for rows in (x, y))
    return _mmd2(of_x, of_y, kernel)


def _mmd2(x: Drawn, y: Drawn, kernel: Polynomial) -> Mmd2:
    """MMD^2 of a subset.  The mean of k(x, y) cancels; it is subtracted from all values to keep digits."""
    origin = y.rows.mean(0)
    at_x, at_y = x.rows - origin, y.rows - origin
    xx, yy, xy = (kernel.beyond(*pair, origin) for pair in ((at_x, at_x), (at_y, at_y), (at_x, at_y)))
    shift = xy.mean()
    xx, yy, xy = xx - shift, yy - shift, xy - shift
    value = _within(xx, x) + _within(yy, y) - 2 * float(x.weights @ xy @ y.weights)
    squares = np.diff(np.diff(xy, axis=0), axis=1) ** 2
    e_xy = float(x.pairs @ squares @ y.pairs / (x.pairs.sum() * y.pairs.sum())) / 4
    (var_a, e_xx), (var_b, e_yy) = _one_set(xx, xy, x, y, e_xy), _one_set(yy, xy.T, y, x, e_xy)
    return Mmd2(value, np.array([var_a, var_b, e_xx, e_yy, e_xy]))


def _within(k: Float64[np.ndarray, "m m"], of: Drawn) -> float:
    """|mu|^2 from the kernel of the pairs of a set's rows, by the formulas of this module's docstring."""
    m, own = len(k), np.diag(k)
    starts = np.flatnonzero(np.diff(of.strata, prepend=-1))
    counts = np.diff(starts, append=m)
    blocks = np.add.reduceat(np.add.reduceat(k, starts, axis=0), starts, axis=1)
    pairs = counts * (counts - 1)
    of_one = (np.diag(blocks) - np.add.reduceat(own, starts)) / np.maximum(pairs, 1)  # the mean of k in each stratum
    if not of.rare:
        weights = of.weights[starts]
        return float(of.weights @ k @ of.weights - of.weights**2 @ own + weights**2 * counts @ of_one)
    every = (k.sum() - own.sum()) / (m * (m - 1))
    shares = counts * (pairs > 0)
    return float(every + (shares @ of_one / shares.sum() - every) / of.count) if shares.any() else float(every)


def _one_set(
    k: Float64[np.ndarray, "m m"], across: Float64[np.ndarray, "m n"], of: Drawn, other: Drawn, e_across: float
) -> tuple[float, float]:
    """(var(a), E (r . r')^2) of a set with the kernel matrix `k`, and `across` with the rows of the other set."""
    along, pairs, i = np.diff(k, axis=0), of.pairs, np.arange(len(k) - 1)
    squares = np.diff(along, axis=1) ** 2
    squares[i, i] = squares[i[1:], i[:-1]] = squares[i[:-1], i[1:]] = 0.0  # pairs that share a row
    count = pairs.sum() ** 2 - pairs.sum() - 2 * pairs[1:] @ pairs[:-1]
    e_own = float(pairs @ squares @ pairs / count) / 4
    # delta_i . (mean x - mean y), the mean of x without rows i and i + 1.
    first, second = of.weights[:-1], of.weights[1:]
    left = 1 - first - second
    mean_x = (along @ of.weights - along[i, i] * first - along[i, i + 1] * second) / left
    pull = mean_x - np.diff(across, axis=0) @ other.weights
    noise = e_own * (np.sum(of.weights**2) - first**2 - second**2) / left**2 + e_across * np.sum(other.weights**2)
    return float(pairs @ (pull**2 / 2 - noise) / pairs.sum()), e_own


def _variance(components: Float64[np.ndarray, " 5"], n_x: int, n_y: int) -> float:
    """V, for n_x and n_y rows."""
    var_a, var_b, e_xx, e_yy, e_xy = components
    first = max(4 * var_a / n_x + 4 * var_b / n_y, 0.0)
    return float(first + 2 * e_xx / (n_x * (n_x - 1)) + 2 * e_yy / (n_y * (n_y - 1)) + 4 * e_xy / (n_x * n_y))
