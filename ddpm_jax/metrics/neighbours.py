"""The nearest rows of b to each row of a.

    d_ij = |a_i - b_j|

All d_ij^2 = |a_i|^2 + |b_j|^2 - 2 a_i . b_j are computed by a matrix product on the device, in float32, block by block.
This form loses digits: its error is within margin_ij = eps (8 + sqrt(d)) (|a_i|^2 + |b_j|^2), with the origin moved to
the middle of the rows.  So the product proposes candidates, and differences of the rows in float64 decide:

    l_ij = d_ij^2 (float32) - margin_ij <= d_ij^2         a lower bound
    candidates of i: a few more than k rows of smallest l_ij, whose distances are computed again by differences

If the k-th of those distances is below the lower bounds of all other rows, no other row is nearer.  Otherwise (if many
rows are equally far) all rows are compared by differences.  A copy has distance exactly 0.  Ties are arbitrary.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64, Int, Int64

from ddpm_jax.diffusion.arrays import Rows
from ddpm_jax.errors import require, require_int
from ddpm_jax.metrics.feature_rows import blocks, centred, checked, middle, same_width

__all__ = ["Neighbours", "exact_distances", "neighbours", "squared"]

PAIRS = 2048  # pairs of rows compared by differences at once
Place = Int[Any, ""] | int
Best = tuple[Float32[Array, "n c"], Int[Array, "n c"]]


class Neighbours(NamedTuple):
    """The k nearest rows of b to each row of a, the nearest first."""

    indices: Int64[np.ndarray, "n k"]
    distances: Float64[np.ndarray, "n k"]


def neighbours(a: Rows, b: Rows, k: int = 1, exclude_self: bool = False, block: int = 2048) -> Neighbours:
    """The k nearest rows of b to each row of a, by Euclidean distance.

    Args:
        a: rows [n, d].
        b: rows [m, d].
        k: the number of neighbours.
        exclude_self: whether row i of b is not a neighbour of row i of a, for equal a and b; copies of it are.
        block: rows read at a time.

    Returns:
        The indices of the neighbours and their distances.

    Raises:
        ValueError: the widths differ, k is too large, or a row is not finite.
    """
    same_width("a", a, "b", b)
    require_int("k", k, 1)
    most = len(b) - exclude_self
    require("k", k, k <= most, f"at most {most}: b has {len(b)} rows{', excluding the row itself' * exclude_self}")
    require("the rows of a", len(a), not exclude_self or len(a) == len(b), f"{len(b)}, those of b: exclude_self is set")
    origin = middle(b, block)
    kept = min(8 * (k // 8 + 2), most)  # one shape for eight values of k: fewer programs to compile
    parts = [_of_block(start, rows, b, origin, k, kept, exclude_self, block) for start, rows in blocks("a", a, block)]
    return Neighbours(*(np.concatenate(list(arrays)) for arrays in zip(*parts, strict=True)))


def squared(a: Float32[Array, "n d"], b: Float32[Array, "m d"]) -> tuple[Float32[Array, "n m"], Float32[Array, "n m"]]:
    """The squared distances of all pairs in float32, and their error margins.

    Args:
        a: rows [n, d].
        b: rows [m, d].

    Returns:
        d_ij^2 and margin_ij.
    """
    sizes = jnp.sum(a * a, 1)[:, None] + jnp.sum(b * b, 1)[None]
    products = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    return sizes - 2 * products, float(np.finfo(np.float32).eps) * (8 + math.sqrt(a.shape[1])) * sizes


def exact_distances(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, " n"]:
    """The distances of pairs of rows by differences in float64, bitwise reproducible.

    Args:
        a: rows [n, d].
        b: rows [n, d].

    Returns:
        |a_i - b_i|.
    """
    return np.sqrt(np.square(a.astype(np.float64) - b).sum(1))


def _of_block(
    start: int, rows: Any, b: Rows, origin: Any, k: int, kept: int, exclude_self: bool, block: int
) -> Neighbours:
    """The neighbours of rows start, start + 1, ... of a."""
    at, shape = centred(rows, origin), (len(rows), kept)
    best = jnp.asarray(np.full(shape, np.inf, np.float32)), jnp.asarray(np.zeros(shape, np.int32))
    for first, others in blocks("b", b, block):
        best = _propose(best, at, centred(others, origin), first, start, exclude_self)
    lower, index = np.asarray(best[0], np.float64), np.asarray(best[1], np.int64)
    distance = _again(rows, b, index)
    distance[lower == np.inf] = np.inf  # the row itself
    order = np.argsort(distance, 1, kind="stable")[:, :k]
    nearest = Neighbours(np.take_along_axis(index, order, 1), np.take_along_axis(distance, order, 1))
    farthest = nearest.distances[:, -1]
    proven = (farthest == 0) | (farthest**2 <= lower[:, -1]) | (kept == len(b) - exclude_self)
    for i in np.flatnonzero(~proven):
        nearest.indices[i], nearest.distances[i] = _one(rows[i], b, k, int(start + i) if exclude_self else -1, block)
    return nearest


@partial(jax.jit, static_argnames="exclude_self")
def _propose(
    best: Best, a: Float32[Array, "n d"], b: Float32[Array, "m d"], first: Place, start: Place, exclude_self: bool
) -> Best:
    """The smallest lower bounds l_ij, of those so far and of a block of b from row `first` on, and their j."""
    (lower, index), (value, margin) = best, squared(a, b)
    j = jnp.broadcast_to(first + jnp.arange(len(b)), value.shape)
    own = exclude_self & (j == (start + jnp.arange(len(a)))[:, None])
    lower = jnp.concatenate([lower, jnp.where(own, jnp.inf, value - margin)], 1)
    found, place = jax.lax.top_k(-lower, index.shape[1])
    return -found, jnp.take_along_axis(jnp.concatenate([index, j], 1), place, 1)


def _again(rows: Any, b: Rows, index: Int64[np.ndarray, "n c"]) -> Float64[np.ndarray, "n c"]:
    """The distances of the candidates, by differences."""
    result, step = np.empty(index.shape), max(1, PAIRS // index.shape[1])
    for i in range(0, len(index), step):
        wanted, place = np.unique(index[i : i + step], return_inverse=True)
        theirs = checked("b", b[wanted], wanted)[place.reshape(-1)]
        own = np.repeat(rows[i : i + step], index.shape[1], 0)
        result[i : i + step] = exact_distances(own, theirs).reshape(-1, index.shape[1])
    return result


def _one(row: Any, b: Rows, k: int, own: int, block: int) -> tuple[Any, Any]:
    """The neighbours of one row other than row `own`, every row of b compared by differences."""
    index, distance = np.empty(0, np.int64), np.empty(0)
    for first, others in blocks("b", b, block):
        new = exact_distances(np.broadcast_to(row, others.shape), others)
        if first <= own < first + len(others):
            new[own - first] = np.inf
        index = np.concatenate([index, first + np.arange(len(others))])
        distance = np.concatenate([distance, new])
        order = np.argsort(distance, kind="stable")[:k]
        index, distance = index[order], distance[order]
    return index, distance
