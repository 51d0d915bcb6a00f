"""Precision and recall, density and coverage: how far two sets of features overlap.

Each row is the centre of a ball whose radius is the distance to its k-th nearest neighbour in its own set.  With the
reference rows x_1..x_n of radii r_i, and the samples y_1..y_m of radii s_j,

    precision = mean_j [ |y_j - x_i| < r_i for some i ]           samples inside the reference
    recall    = mean_i [ |y_j - x_i| < s_j for some j ]           reference inside the samples
    density   = (1 / k) mean_j sum_i [ |y_j - x_i| < r_i ]        balls around a sample; may exceed 1
    coverage  = mean_i [ |y_j - x_i| < r_i for some j ]           reference balls with a sample in them

Kynkaanniemi et al. 2019 (1904.06991) define the first two, with k = 3; Naeem et al. 2020 (2002.09797) the others, with
k = 5.  All depend on k, n and m: compare numbers only for equal k, n and m.  Balls are open, as in prdc; in the
papers they are closed.  The two differ for ties only.

As in `neighbours`, a matrix product in float32 decides if its error margin allows, otherwise differences in float64.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int64

from ddpm_jax.diffusion.arrays import Rows
from ddpm_jax.errors import require, require_int
from ddpm_jax.metrics.feature_rows import blocks, centred, middle, same_width
from ddpm_jax.metrics.neighbours import PAIRS, exact_distances, neighbours, squared

__all__ = ["Manifold", "manifold", "members", "radii"]


class Manifold(NamedTuple):
    """Precision, recall and coverage are in 0..1; density is 0 or more, and 1 for the reference itself."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(samples: Rows, reference: Rows, k: int = 5, block: int = 2048) -> Manifold:
    """Precision, recall, density and coverage.

    Args:
        samples: rows [m, d].
        reference: rows [n, d].
        k: the neighbour whose distance is the radius of a ball.
        block: rows read at a time.

    Returns:
        The four numbers.

    Raises:
        ValueError: the widths differ, k is not less than n and m, or a row is not finite.
    """
    same_width("samples", samples, "reference", reference, least=2)
    require_int("k", k, 1)
    fewest = min(len(samples), len(reference))
    require("k", k, k < fewest, f"less than {fewest}, the number of rows of the smaller set")
    around_reference, around_samples = (radii(rows, k, block) for rows in (reference, samples))
    balls_of_sample, samples_in_ball = members(samples, reference, around_reference, block)
    balls_of_reference, _ = members(reference, samples, around_samples, block)
    precision, recall = float(np.mean(balls_of_sample > 0)), float(np.mean(balls_of_reference > 0))
    density, coverage = float(np.mean(balls_of_sample)) / k, float(np.mean(samples_in_ball > 0))
    return Manifold(precision, recall, density, coverage)


def radii(rows: Rows, k: int, block: int = 2048) -> Float[np.ndarray, " n"]:
    """The distance from each row to the k-th nearest other row.

    Args:
        rows: rows [n, d].
        k: which neighbour.
        block: rows read at a time.

    Returns:
        The n distances.
    """
    return neighbours(rows, rows, k, exclude_self=True, block=block).distances[:, -1]


def members(
    points: Rows, centres: Rows, radius: Float[np.ndarray, " m"], block: int = 2048
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " m"]]:
    """Count which points lie in which balls |p - centre_j| < radius_j.

    Args:
        points: rows [n, d].
        centres: rows [m, d].
        radius: that of each ball.
        block: rows read at a time.

    Returns:
        The number of balls around each point, and the number of points in each ball.
    """
    of_point, of_ball = np.zeros(len(points), np.int64), np.zeros(len(centres), np.int64)
    origin = middle(centres, block)
    for i, p in blocks("points", points, block):
        at = centred(p, origin)
        for j, c in blocks("centres", centres, block):
            reach = radius[j : j + len(c)]
            by_point, by_ball, doubtful, doubts = _decide(at, centred(c, origin), (reach**2).astype(np.float32))
            of_point[i : i + len(p)] += np.asarray(by_point)
            of_ball[j : j + len(c)] += np.asarray(by_ball)
            for u, v in _inside(p, c, reach, np.asarray(doubtful)) if doubts else ():
                np.add.at(of_point, i + u, 1)
                np.add.at(of_ball, j + v, 1)
    return of_point, of_ball


@jax.jit
def _decide(
    points: Float32[Array, "n d"], centres: Float32[Array, "m d"], reach: Float32[Any, " m"]
) -> tuple[Int[Array, " n"], Int[Array, " m"], Bool[Array, "n m"], Bool[Array, ""]]:
    """The counts of pairs that are certainly inside, the pairs that float32 cannot decide, and whether there are any.

    reach: the squared radii.  A ball of radius 0 is empty.
    """
    value, margin = squared(points, centres)
    reach = reach[None]
    margin = margin + 2 * float(np.finfo(np.float32).eps) * reach
    inside, outside = value + margin < reach, (value - margin >= reach) | (reach == 0)
    doubtful = ~(inside | outside)
    return inside.sum(1), inside.sum(0), doubtful, doubtful.any()


def _inside(points: Any, centres: Any, radius: Any, doubtful: Bool[np.ndarray, "n m"]) -> Iterator[tuple[Any, Any]]:
    """The doubtful pairs that are inside: indices of points and of centres."""
    pairs = np.argwhere(doubtful)
    for start in range(0, len(pairs), PAIRS):
        i, j = pairs[start : start + PAIRS].T
        within = exact_distances(points[i], centres[j]) < radius[j]
        yield i[within], j[within]
