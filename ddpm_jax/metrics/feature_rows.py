"""Read rows block by block, and check the inputs of all metrics."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from ddpm_jax.diffusion.arrays import Rows
from ddpm_jax.errors import require, require_int

__all__ = ["Block", "blocks", "centred", "checked", "middle", "same_width", "width"]

Block = Float[np.ndarray, "m d"]


def width(name: str, rows: Rows, least: int = 1) -> int:
    """The width d of rows [n, d].

    Args:
        name: their name in messages.
        rows: the rows.
        least: the least n that is accepted.

    Returns:
        d.

    Raises:
        ValueError: the rows have another number of axes, or are too few.
    """
    shape = (len(rows), *np.asarray(rows[:1]).shape[1:])
    expected = f"[n, d] with n >= {least} and d >= 1"
    require(f"the shape of {name}", shape, len(shape) == 2 and shape[0] >= least and shape[1] >= 1, expected)
    return shape[1]


def same_width(name: str, rows: Rows, other_name: str, other: Rows, least: int = 1) -> int:
    """The width d of two sets of rows.

    Args:
        name: the name of the first set in messages.
        rows: the first set, [n, d].
        other_name: the name of the second set in messages.
        other: the second set, [m, d].
        least: the least number of rows that is accepted.

    Returns:
        d.

    Raises:
        ValueError: the widths differ, or a set is wrong as in `width`.
    """
    d, other_d = width(name, rows, least), width(other_name, other, least)
    require(f"the width of {name}", d, d == other_d, f"{other_d}, that of {other_name}: features of one network")
    return d


def blocks(name: str, rows: Rows, size: int) -> Iterator[tuple[int, Block]]:
    """The rows in order, in blocks.

    Args:
        name: the name of the rows in messages.
        rows: the rows, [n, d].
        size: the number of rows in a block; the last block may be smaller.

    Returns:
        An iterator over (index of the first row, rows [m, d]).

    Raises:
        ValueError: a row is not finite.
    """
    require_int("block", size, 1)
    for start in range(0, len(rows), size):
        yield start, checked(name, rows[start : start + size], start)


def checked(name: str, block: Any, first: int | Int[np.ndarray, " m"] = 0) -> Block:
    """A block of rows as an array of floats.

    Args:
        name: the name of the rows in messages.
        block: the rows, [m, d].
        first: the index of the first row, or the indices of all rows.

    Returns:
        The array.

    Raises:
        ValueError: a row is not finite; the message names it.
    """
    block = np.asarray(block)
    block = block if np.issubdtype(block.dtype, np.floating) else block.astype(np.float32)
    if not np.isfinite(block).all():
        row = np.flatnonzero(~np.isfinite(block).all(1))[0]
        value = block[row][~np.isfinite(block[row])][0]
        index = first + row if isinstance(first, int) else first[row]
        require(f"{name}[{index}]", float(value), False, "finite numbers")
    return block


def middle(rows: Rows, block: int) -> Float32[np.ndarray, " d"]:
    """An origin in the middle of the rows: rounding errors depend on it, distances do not.

    Args:
        rows: the rows, [n, d].
        block: the number of rows to average.

    Returns:
        The mean of the first rows.
    """
    return np.asarray(rows[:block]).mean(0, dtype=np.float64).astype(np.float32)


def centred(rows: Float[np.ndarray, "m d"], origin: Float32[np.ndarray, " d"]) -> Float32[Array, "m d"]:
    """The rows relative to an origin, on the device.

    Args:
        rows: the rows.
        origin: the origin.

    Returns:
        rows - origin in float32.
    """
    return jnp.asarray(np.asarray(rows - origin, np.float32))
