"""Reading rows block by block, and refusing what no metric can use: every metric's inputs are checked here."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from ddpm_jax.diffusion.arrays import Rows
from ddpm_jax.errors import require, require_int

Block = Float[np.ndarray, "m d"]


def width(name: str, rows: Rows, least: int = 1) -> int:
    """The d of rows [n, d], checked to be `least` of them or more.  An error calls them `name`."""
    shape = (len(rows), *np.asarray(rows[:1]).shape[1:])
    expected = f"[n, d] with n >= {least} and d >= 1"
    require(f"the shape of {name}", shape, len(shape) == 2 and shape[0] >= least and shape[1] >= 1, expected)
    return shape[1]


def same_width(name: str, rows: Rows, other_name: str, other: Rows, least: int = 1) -> int:
    """The d that two sets of rows have, each of `least` rows or more."""
    d, other_d = width(name, rows, least), width(other_name, other, least)
    require(f"the width of {name}", d, d == other_d, f"{other_d}, that of {other_name}: features of one network")
    return d


def blocks(name: str, rows: Rows, size: int) -> Iterator[tuple[int, Block]]:
    """(index of the first row, rows [m, d]), m = `size` but for the last; in order, checked."""
    require_int("block", size, 1)
    for start in range(0, len(rows), size):
        yield start, checked(name, rows[start : start + size], start)


def checked(name: str, block: Any, first: int | Int[np.ndarray, " m"] = 0) -> Block:
    """The block as an array of floats; a row that is not finite is an error that names it.

    first: the index of the first row, or those of all of them.
    """
    block = np.asarray(block)
    block = block if np.issubdtype(block.dtype, np.floating) else block.astype(np.float32)
    if not np.isfinite(block).all():
        row = np.flatnonzero(~np.isfinite(block).all(1))[0]
        value = block[row][~np.isfinite(block[row])][0]
        index = first + row if isinstance(first, int) else first[row]
        require(f"{name}[{index}]", float(value), False, "finite numbers: look at what made this row")
    return block


def middle(rows: Rows, block: int) -> Float32[np.ndarray, " d"]:
    """A point amid the rows: distances do not depend on the origin, but rounding errors do."""
    return np.asarray(rows[:block]).mean(0, dtype=np.float64).astype(np.float32)


def centred(rows: Float[np.ndarray, "m d"], origin: Float32[np.ndarray, " d"]) -> Float32[Array, "m d"]:
    """The rows on the device, in float32, seen from the origin."""
    return jnp.asarray(np.asarray(rows - origin, np.float32))
