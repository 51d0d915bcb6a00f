"""The Frechet distance of two sets of features, each fitted by a normal distribution (Heusel et al. 2017, 1706.08500).

    d^2 = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))

m and C are the mean [d] and the unbiased covariance [d, d].  With Inception-v3 features of 50,000 images this is FID.
With other features, or fewer images, it is another number, which compares only with numbers of the same kind.  Its bias
falls with the number of images, because a finite sample has a covariance of its own.  `jackknife` gives its standard
error.

Moments are sums over rows, so they are computed block by block.  Blocks a and b, of n_a and n_b rows with
scatters S = (n - 1) C, have together (Chan, Golub and LeVeque 1979, updating formulae for computing variances)

    m = m_a + (n_b / n) delta,    S = S_a + S_b + (n_a n_b / n) delta delta^T,    delta = m_b - m_a,  n = n_a + n_b

No large numbers are subtracted, so float64 stays accurate for any number of rows.
"""

import io
import json
import zipfile
from dataclasses import dataclass
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from ddpm_jax.diffusion.arrays import Rows
from ddpm_jax.errors import require
from ddpm_jax.metrics.feature_rows import blocks, width
from ddpm_jax.storage.paths import io_errors, run_path, write_file

__all__ = ["Moments", "Stored", "frechet_distance", "load_moments", "merge", "moments", "root", "save_moments"]

Vector = Float64[np.ndarray, " D"]
Matrix = Float64[np.ndarray, "D D"]


@dataclass(frozen=True)
class Moments:
    """The mean [D] and unbiased covariance [D, D] of features, float64, and the number of rows."""

    mean: Vector
    cov: Matrix
    count: int | None = None
    """The number of rows; None: unknown, as in the published files of other programs."""


def moments(features: Rows, block: int = 4096) -> Moments:
    """The mean and the unbiased covariance of features, in memory O(D^2) for any number of rows.

    Args:
        features: rows [n, D], n >= 2.
        block: rows read at a time.

    Returns:
        The moments.

    Raises:
        ValueError: a row is not finite, or there are fewer than two.
    """
    d = width("features", features, least=2)
    count, mean, scatter = 0, np.zeros(d), np.zeros((d, d))
    for _, rows in blocks("features", features, block):
        rows = rows.astype(np.float64)
        centre = rows.mean(0)
        rows -= centre
        count, mean, scatter = _chan(count, mean, scatter, len(rows), centre, rows.T @ rows)
    return Moments(mean, scatter / (count - 1), count)


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of the rows of both.

    Args:
        a: moments with a count.
        b: moments with a count.

    Returns:
        The moments that `moments` gives for all the rows together.

    Raises:
        ValueError: the sizes differ, or a count is None.
    """
    _same_size(a, b)
    for name, count in (("a.count", a.count), ("b.count", b.count)):
        require(name, count, count is not None, "the number of rows, which is needed to merge moments")
    n_a, n_b = int(a.count or 0), int(b.count or 0)
    count, mean, scatter = _chan(n_a, a.mean, a.cov * (n_a - 1), n_b, b.mean, b.cov * (n_b - 1))
    return Moments(mean, scatter / (count - 1), count)


def _chan(
    n_a: int, mean_a: Vector, scatter_a: Matrix, n_b: int, mean_b: Vector, scatter_b: Matrix
) -> tuple[int, Vector, Matrix]:
    n, delta = n_a + n_b, mean_b - mean_a
    return n, mean_a + (n_b / n) * delta, scatter_a + scatter_b + (n_a * n_b / n) * np.outer(delta, delta)


def frechet_distance(a: Moments, b: Moments) -> float:
    """The Frechet distance d^2.

    The trace of the root of C_a C_b is that of the root of R C_b R with R^2 = C_a, which is symmetric.  This takes two
    eigenvalue problems, and is finite also for singular covariances.

    Args:
        a: moments of one set.
        b: moments of the other set.

    Returns:
        d^2, 0 for equal moments.

    Raises:
        ValueError: the sizes differ.
    """
    _same_size(a, b)
    r = root(a.cov)
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(r @ b.cov @ r), 0.0)).sum()
    distance = np.sum((a.mean - b.mean) ** 2) + np.trace(a.cov) + np.trace(b.cov) - 2.0 * cross
    return float(max(distance, 0.0))


def root(cov: Matrix) -> Matrix:
    """The symmetric R with R^2 = C.  Eigenvalues that are negative by rounding count as 0."""
    values, vectors = np.linalg.eigh(cov)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def _same_size(a: Moments, b: Moments) -> None:
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of sizes {len(a.mean)} and {len(b.mean)} cannot be compared")


class Stored(NamedTuple):
    """Moments read from a file, and their provenance."""

    moments: Moments
    provenance: dict[str, Any]
    """The argument of `save_moments`; empty for a file of another program."""


def save_moments(path: str | PathLike, moments: Moments, provenance: dict[str, Any]) -> None:
    """Write an .npz file with `mu` and `sigma`, which pytorch-fid, TTUR and clean-fid read, `count` and `provenance`.

    Args:
        path: the file.
        moments: the moments.
        provenance: values for JSON, such as the network of the features and its digest, the data set and the date.
    """
    arrays: dict[str, Any] = {"mu": moments.mean, "sigma": moments.cov, "provenance": np.array(json.dumps(provenance))}
    if moments.count is not None:
        arrays["count"] = np.array(moments.count)
    write_file(run_path(path), lambda file: np.savez(file, **arrays))


def load_moments(path: str | PathLike) -> Stored:
    """Read an .npz file of `save_moments`, or any other with `mu` [D] and `sigma` [D, D].

    Raises:
        FileNotFoundError: the file cannot be read.
        ValueError: the file is not of this kind, or its numbers cannot be moments.
    """
    file = run_path(path)
    try:
        content = io.BytesIO(file.read_bytes())
    except io_errors(file) as error:
        raise FileNotFoundError(f"path is {str(path)!r}, which cannot be read: {error}") from None
    expected = "an .npz file with `mu` and `sigma`; save_moments writes one"
    require("path", str(path), zipfile.is_zipfile(content), expected)
    try:
        with np.load(content) as stored:
            found = {name: stored[name] for name in stored.files if name in ("mu", "sigma", "count", "provenance")}
            names = ", ".join(sorted(stored.files))
        provenance = json.loads(str(found.get("provenance", "{}")))
    except Exception as error:  # a damaged archive raises many kinds of errors
        raise ValueError(f"{path} cannot be read ({error}); make it again") from None
    require(f"the arrays of {path}", names, {"mu", "sigma"} <= set(found), "`mu` and `sigma` among them")
    count = int(found["count"]) if "count" in found else None
    return Stored(Moments(*_checked(str(path), found["mu"], found["sigma"]), count), provenance)


def _checked(path: str, mu: Any, sigma: Any) -> tuple[Vector, Matrix]:
    """mu and sigma in float64; ValueError unless they can be a mean and a covariance."""
    shapes = f"mu {mu.shape}, sigma {sigma.shape}"
    require(f"what {path} holds", shapes, mu.ndim == 1 and sigma.shape == (len(mu), len(mu)), "mu [D] and sigma [D, D]")
    number = np.issubdtype(mu.dtype, np.floating) and np.issubdtype(sigma.dtype, np.floating)
    require(f"what {path} holds", f"mu {mu.dtype}, sigma {sigma.dtype}", number, "floating-point numbers")
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    finite = bool(np.isfinite(mu).all() and np.isfinite(sigma).all())
    require(f"what {path} holds", "not finite", finite, "finite numbers")
    skew = float(np.abs(sigma - sigma.T).max())
    symmetric = skew <= 1e-4 * float(np.abs(sigma).max())
    require(f"sigma - sigma^T of {path}", skew, symmetric and bool((np.diag(sigma) >= 0).all()), "0: a covariance")
    return mu, sigma
