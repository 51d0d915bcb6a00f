"""The nearest rows of b to each row of a.

    d_ij = |a_i - b_j|

All d_ij^2 = |a_i|^2 + |b_j|^2 - 2 a_i . b_j come from a matrix product on the device, in float32, block by block.  That
form cancels: its error is within margin_ij = eps (8 + sqrt(d)) (|a_i|^2 + |b_j|^2), the origin being moved amid the
rows.  So the product only proposes, and differences of the rows in float64 decide:

    l_ij = d_ij^2 (float32) - margin_ij <= d_ij^2         a lower bound
    candidates of i: a few more than k rows of smallest l_ij, whose distances are computed again by differences

When the k-th of those distances is below every other row's lower bound, it is proven that no other row is nearer; else
(many rows equally far) all rows are compared by differences.  A copy has distance exactly 0.  Among rows equally far
any may be named.
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

PAIRS = 2048  # pairs of rows that are compared by differences at once


class Neighbours(NamedTuple):
    """For each row of a its k nearest rows of b, the nearest first."""

    indices: Int64[np.ndarray, "n k"]
    distances: Float64[np.ndarray, "n k"]


def neighbours(a: Rows, b: Rows, k: int = 1, exclude_self: bool = False, block: int = 2048) -> Neighbours:
    """The k nearest rows of b to each row of a, by Euclidean distance.

    exclude_self: a and b are the same rows, and row i is not a neighbour of itself (a copy of it is).
    """
    same_width("a", a, "b", b)
    require_int("k", k, 1)
    most = len(b) - exclude_self
    require("k", k, k <= most, f"at most {most}: b has {len(b)} rows{', the row itself is none' * exclude_self}")
    require("the rows of a", len(a), not exclude_self or len(a) == len(b), f"{len(b)}, those of b: exclude_self is set")
    origin = middle(b, block)
    kept = min(8 * (k // 8 + 2), most)  # of every eight k the same: fewer programs to compile
    parts = [_of_block(start, rows, b, origin, k, kept, exclude_self, block) for start, rows in blocks("a", a, block)]
    return Neighbours(*(np.concatenate(list(arrays)) for arrays in zip(*parts, strict=True)))


def squared(a: Float32[Array, "n d"], b: Float32[Array, "m d"]) -> tuple[Float32[Array, "n m"], Float32[Array, "n m"]]:
    """d_ij^2 in float32 and margin_ij, how far they may be off."""
    sizes = jnp.sum(a * a, 1)[:, None] + jnp.sum(b * b, 1)[None]
    products = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    return sizes - 2 * products, float(np.finfo(np.float32).eps) * (8 + math.sqrt(a.shape[1])) * sizes


def exact_distances(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, " n"]:
    """|a_i - b_i| by differences in float64: the last word, the same to the bit whichever way it is asked for."""
    return np.sqrt(np.square(a.astype(np.float64) - b).sum(1))


def _of_block(
    start: int, rows: Any, b: Rows, origin: Any, k: int, kept: int, exclude_self: bool, block: int
) -> Neighbours:
    """The neighbours of rows start, start + 1, ... of a."""
    at, shape = centred(rows, origin), (len(rows), kept)
    best = jnp.asarray(np.full(shape, np.inf, np.float32)), jnp.asarray(np.zeros(shape, np.int32))
    for first, others in blocks("b", b, block):
        best = _propose(*best, at, centred(others, origin), first, start, exclude_self)
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
    lower: Float32[Array, "n c"],
    index: Int[Array, "n c"],
    a: Float32[Array, "n d"],
    b: Float32[Array, "m d"],
    first: Int[Any, ""] | int,
    start: Int[Any, ""] | int,
    exclude_self: bool,
) -> tuple[Float32[Array, "n c"], Int[Array, "n c"]]:
    """The smallest lower bounds l_ij so far and in a block that begins at row `first` of b, and their j."""
    value, margin = squared(a, b)
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
