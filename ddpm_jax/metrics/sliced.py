"""The sliced Wasserstein distance of order p (Rabin et al. 2011; Bonneel et al. 2015).

    SW_p^p = E_theta W_p^p( theta . a, theta . b ),    theta uniform on the unit sphere

On a line, with the quantile functions F^-1 and G^-1 of the two sets (Peyre and Cuturi 2019, 1803.00567, eq. 2.30),

    W_p^p = integral_0^1 |F^-1(u) - G^-1(u)|^p du

Both functions are step functions, so this is an exact sum over the merged steps i/n and j/m.  For sets of equal size it
pairs the sorted values.  Two sets that differ by a shift s have SW_2^2 = |s|^2 / d.  Like the Frechet distance it falls
with n: a sample of a distribution is not at distance 0 from it.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int64

from ddpm_jax.diffusion.arrays import Key, Rows, example_keys, normals
from ddpm_jax.errors import require, require_int
from ddpm_jax.metrics.estimate import Estimate
from ddpm_jax.metrics.feature_rows import blocks, centred, middle, same_width

__all__ = ["merged_steps", "sliced_wasserstein", "unit_directions", "wasserstein"]

Steps = tuple[Int64[np.ndarray, " s"], Int64[np.ndarray, " s"], Float[np.ndarray, " s"]]


def sliced_wasserstein(
    key: Key, a: Rows, b: Rows, p: float = 2.0, directions: int = 512, group: int = 64, block: int = 4096
) -> Estimate:
    """SW_p, with the standard error due to the finite number of directions (not of rows).

    Args:
        key: the key of the directions; direction i depends on (key, i) only.
        a: rows [n, d].
        b: rows [m, d].
        p: the order, 1 or more.
        directions: the number of directions, 2 or more.
        group: directions at a time; memory is `group` numbers for each row.
        block: rows read at a time.

    Returns:
        The estimate.

    Raises:
        ValueError: the widths differ, an argument is out of range, or a row is not finite.
    """
    d = same_width("a", a, "b", b)
    require("p", p, p >= 1, "1 or more")
    require_int("directions", directions, 2)
    require_int("group", group, 1)
    steps, origin = merged_steps(len(a), len(b)), middle(b, block)
    powers = []
    for first in range(0, directions, group):
        theta = unit_directions(key, first, min(group, directions - first), d)
        sorted_a, sorted_b = (_sorted(name, rows, origin, theta, block) for name, rows in (("a", a), ("b", b)))
        powers.append(wasserstein(sorted_a, sorted_b, steps, p))
    power = np.concatenate(powers)
    mean, error = power.mean(), power.std(ddof=1) / np.sqrt(directions)
    value = mean ** (1 / p)
    return Estimate(float(value), float(error * value / (p * mean)) if mean > 0 else 0.0)


@partial(jax.jit, static_argnums=(2, 3))
def unit_directions(key: Key, first: Int[Any, ""] | int, number: int, d: int) -> Float32[Array, "g d"]:
    """Random directions: normal vectors scaled to unit length.

    Args:
        key: the key.
        first: the number of the first direction.
        number: how many directions.
        d: their dimension.

    Returns:
        The directions first, first + 1, ..., [number, d].
    """
    theta = normals(example_keys(key, first, number), 0, (number, d))
    return theta / jnp.linalg.norm(theta, axis=1, keepdims=True)


def merged_steps(n: int, m: int) -> Steps:
    """The intervals of 0..1 on which both quantile functions are constant.

    Args:
        n: the number of values of the first function.
        m: the number of values of the second function.

    Returns:
        For each interval the index of the value of each function, and the length of the interval.
    """
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # integers, in units of 1/(n m)
    begins = np.concatenate([[0], ends[:-1]])
    return begins // m, begins // n, (ends - begins) / (n * m)


def wasserstein(
    a: Float[np.ndarray, "g n"], b: Float[np.ndarray, "g m"], steps: Steps, p: float
) -> Float[np.ndarray, " g"]:
    """W_p^p of projections, in float64.

    Args:
        a: the projections of the first set on g directions, sorted.
        b: the same for the second set.
        steps: the intervals of `merged_steps`.
        p: the order.

    Returns:
        W_p^p for each direction.
    """
    i, j, length = steps
    return np.array([np.abs(x[i].astype(np.float64) - y[j]) ** p @ length for x, y in zip(a, b, strict=True)])


def _sorted(name: str, rows: Rows, origin: Float32[np.ndarray, " d"], theta: Any, block: int) -> Any:
    """theta . (x - origin) of every row, sorted: float32 [g, n]."""
    lines = [np.asarray(_project(theta, centred(x, origin))) for _, x in blocks(name, rows, block)]
    return np.asarray(jnp.sort(np.concatenate(lines, 1), axis=1))


@jax.jit
def _project(theta: Float32[Array, "g d"], rows: Float32[Array, "m d"]) -> Float32[Array, "g m"]:
    return jnp.matmul(theta, rows.T, precision=jax.lax.Precision.HIGHEST)
