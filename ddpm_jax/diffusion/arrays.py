"""The vocabulary every other file speaks: shapes of arrays, timesteps, and streams of random keys.

Shapes.  A batch of data is [batch, ...]: images are [batch, height, width, channels] in [-1, 1], but
every formula also holds for points in the plane or on the line.  A time t is one per example or one for all.  In a
chain it is an integer: t = 0 is clean data and t = T is (nearly) pure noise.  A real t then stands for the point of a
smooth curve between its neighbours.  In a continuous process (`process`) every t is real.

Randomness.  Every draw is a function of (seed, name of the stream, step, example): `stream` separates
the names, `jax.random.fold_in` the steps, `example_keys` the examples.
"""

import zlib
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.core
import jax.numpy as jnp
import jaxtyping
import numpy as np
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray, Shaped, UInt8, UInt32

from ddpm_jax.devices.axes import take
from ddpm_jax.errors import require, require_int, require_key

__all__ = ["Batch", "Images", "Key", "Keys", "PerExample", "Pixels", "Predict", "Rows", "Table", "Time"]
__all__ += [
    "Whole",
    "as_data",
    "curve",
]
__all__ += ["example_keys", "lookup", "normals", "per_example", "root", "stream"]

type_of_array = jax.Array | np.ndarray

Batch = Float[type_of_array, "batch *dims"]  # data, latents, noise, network outputs
PerExample = Float[Array, " batch"]
Images = Float[type_of_array, "batch height width channels"]  # in [-1, 1]
Pixels = UInt8[type_of_array, "batch height width channels"]  # 0..255
Table = Float[Array, " steps"]  # one number for each t = 0..T
Whole = int | np.integer | Int[type_of_array, ""]
Time = Int[type_of_array, "..."] | Float[type_of_array, "..."] | int | float | np.integer | np.floating
Key = PRNGKeyArray | UInt32[Array, "2"]
Keys = jaxtyping.Key[Array, " batch"] | UInt32[Array, "batch 2"]

# The seam between the mathematics and the networks: output = predict(z_t, t), whatever made it (`functions`).
Predict = Callable[[Any, Any], Any]


@runtime_checkable
class Rows(Protocol):
    """n vectors of one width d, such as the features of n images: an array, a memory map, or files read in parts.

    `rows[i:j]` and `rows[indices]`, with an increasing integer array of indices, give an array [m, d].
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


def lookup(of: Callable[[Time], Any] | Table, t: Time, like: Batch) -> Float[Array, "*broadcastable"]:
    """of(t), one number per example, shaped [batch, 1, ..., 1] to broadcast against `like`.

    Args:
        of: a function of time, such as `process.signal`; or a table, one number for each t = 0..T.
        t: [batch] or one for all; for a table, a real t interpolates between the entries (`curve`).
        like: the batch, [batch, ...].

    Returns:
        float32 [batch, 1, ..., 1], or [1, ..., 1] for one t.

    Raises:
        ValueError: t is not a number, has the wrong shape, or is a whole number outside 0..T.
    """
    check_time(t, like)
    return per_example(of(t) if callable(of) else at_time(of, t), like)


def at_time(table: Table, t: Time) -> Float[Array, "..."]:
    """The entries of a table, t = 0..T, at whole times; between them at real ones (`curve`)."""
    if jnp.issubdtype(jnp.asarray(t).dtype, jnp.floating):
        return curve(table, jnp.asarray(t))
    check_timesteps(t, 0, len(table) - 1)
    return take(table, jnp.asarray(t))


def check_time(t: Any, like: Batch) -> None:
    """Raise ValueError unless t is one number, whole or real, or one for each example of `like`."""
    expected = f"() or {like.shape[:1]}, one for each example"
    dtype = t.dtype if hasattr(t, "dtype") else np.asarray(t).dtype
    require("t", t, jnp.issubdtype(dtype, jnp.number), f"numbers of shape {expected}")
    if jnp.shape(t) not in ((), like.shape[:1]):
        raise ValueError(f"t has shape {jnp.shape(t)}; expected {expected}")


def check_first_index(first_index: Any) -> None:
    """Raise ValueError unless first_index is a whole number, 0 or more; inside a jitted function its type counts."""
    if not (isinstance(first_index, jax.core.Tracer) and jnp.issubdtype(first_index.dtype, jnp.integer)):
        require_int("first_index", first_index, 0)


def per_example(values: Any, like: Batch) -> Shaped[Array, "..."]:
    """One value for each example, or one for all, shaped [batch, 1, ..., 1] to broadcast against `like`.

    Args:
        values: () or [batch].
        like: the batch, [batch, ...].
    """
    values = jnp.asarray(values)
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def root(var: Float[Array, "..."]) -> Float[Array, "..."]:
    """The square root, with slope 0 instead of infinity at 0: a variance that is exactly 0 stays so."""
    return jnp.where(var > 0, jnp.sqrt(jnp.where(var > 0, var, 1.0)), 0.0)


# Data that reach this and are never negative are taken for pixels that were not scaled.
LARGEST = 30


def as_data(x: Any, name: str = "x", *, scaled: bool = False) -> Array:
    """x as an array of floats.

    Args:
        x: data, [batch, ...].
        name: the name of x in messages.
        scaled: whether to refuse pixels that were not scaled to [-1, 1]: data that are never negative and reach more
            than 30, at most 255, if they are images or videos, or all whole numbers.  Only the first examples are
            looked at, and nothing inside `jit` or that a device other than a CPU still computes.

    Raises:
        ValueError: x is not an array of floats, or holds pixels.
    """
    if not hasattr(x, "dtype"):
        try:
            x = np.asarray(x)
        except ValueError:  # lists of different lengths
            raise ValueError(f"{name} is a list of parts of different shapes; expected an array of floats") from None
    require(name, x, jnp.issubdtype(x.dtype, jnp.number) or x.dtype == bool, "an array of floats, [batch, ...]")
    require(name, x, x.ndim > 0, "an array of floats, [batch, ...]")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} has dtype {x.dtype}; expected floats in [-1, 1]: data.images.to_unit makes them")
    seen = _first_examples(x) if scaled else None
    if seen is not None and seen.size:
        low, high = float(seen.min()), float(seen.max())
        if low >= 0 and LARGEST < high <= 255 and (x.ndim >= 4 or bool(np.all(seen == np.rint(seen)))):
            raise ValueError(
                f"{name} reaches {high:g}; expected data in [-1, 1]: data.images.to_unit makes them of uint8 pixels"
            )
    return jnp.asarray(x)


def _first_examples(x: Any) -> np.ndarray | None:
    """A few examples of a batch; None if they are not known yet."""
    if isinstance(x, np.ndarray):
        return x[:64]
    if isinstance(x, jax.core.Tracer):
        return None
    if not x.addressable_shards:
        return None
    part, on_cpu = x.addressable_shards[0].data, next(iter(x.devices())).platform == "cpu"
    return np.asarray(part)[:64] if on_cpu else np.asarray(part[:1]) if x.is_ready() else None


def check_shape(name: str, value: Any, other: str, like: Any) -> None:
    """Raise ValueError unless two arrays have one shape: what is broadcast is a mistake."""
    if jnp.shape(value) != jnp.shape(like):
        raise ValueError(f"{name} has shape {jnp.shape(value)}; expected that of {other}, {jnp.shape(like)}")


def curve(table: Table, t: Float[Array, "..."]) -> Float[Array, "..."]:
    """The smooth curve through a table at real t in 0..T: a cubic between neighbours, with continuous slope.

    The slope at an entry is half the difference of the entries beside it (Catmull-Rom); beyond both ends the table is
    extended in a straight line.

    Args:
        table: one number for each t = 0..T.
        t: real times, of any shape.

    Returns:
        float32, shaped like t.
    """
    below = jnp.clip(jnp.floor(t).astype(jnp.int32), 0, len(table) - 2)
    u = t - below.astype(t.dtype)
    extended = jnp.concatenate([2 * table[:1] - table[1:2], table, 2 * table[-1:] - table[-2:-1]])
    before, left, right, after = (take(extended, below + i) for i in range(4))
    rise = right - left
    slope_left, slope_right = 0.5 * (right - before), 0.5 * (after - left)
    bend = slope_left + slope_right - 2 * rise
    return left + u * (slope_left + u * (rise - slope_left - bend + u * bend))


def is_known(*values: Any) -> bool:
    """Whether all values are numbers that can be read now: no tracers, nothing that lies on other hosts."""
    return not any(
        isinstance(value, jax.core.Tracer) or (isinstance(value, jax.Array) and not value.is_fully_addressable)
        for value in values
    )


def check_timesteps(t: Time, first: int, last: int, name: str = "t") -> None:
    """Raise ValueError unless every timestep is a whole number in first..last; a traced t is not checked."""
    check_times(t, first, last, name, whole=True)


def check_times(
    t: Time,
    first: int | float,
    last: int | float,
    name: str = "t",
    clean: int | float | None = None,
    whole: bool = False,
) -> None:
    """Raise ValueError unless every t lies between first and last, or is `clean`; a traced t is not checked.

    Under `jit` the values are not known, and JAX clamps indices.
    """
    if not is_known(t):
        return
    expected = f"integers in {first}..{last}" if whole else f"numbers in [{first:g}, {last:g}]"
    try:
        values = np.asarray(t)
    except ValueError:  # lists of different lengths
        raise ValueError(f"{name} is {t}; expected {expected}") from None
    if not np.issubdtype(values.dtype, np.integer if whole else np.number):
        raise ValueError(f"{name} has dtype {values.dtype}; expected {expected}")
    rounded, low, high = (values, first, last) if whole else map(np.float32, (values, first, last))
    outside = values[~((rounded >= low) & (rounded <= high) | (values == clean))]
    if outside.size:
        told = f"is outside {first}..{last}" if whole else f"is outside [{first:g}, {last:g}]"
        raise ValueError(f"{name} = {outside.flat[0]} {told}")


def stream(key: Key, name: str) -> Key:
    """The key of the stream of random numbers called `name`, independent of every other stream.

    Args:
        key: the key.
        name: the name of the stream.

    Raises:
        ValueError: key is not a key.
    """
    require_key(key)
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def example_keys(key: Key, first_index: Whole, batch: int) -> Keys:
    """One key for each example first_index, ..., first_index + batch - 1.

    Key i depends on (key, i) only, so image i is the same image in any batch on any mesh.

    Args:
        key: the key.
        first_index: the number of the first example.
        batch: the number of examples.

    Raises:
        ValueError: key is not a key.
    """
    require_key(key)
    indices = jnp.asarray(first_index, jnp.uint32) + jnp.arange(batch, dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)


def normals(keys: Keys, index: Integer[Array, ""] | int, shape: tuple[int, ...]) -> Float[Array, "batch *dims"]:
    """eps ~ N(0, I), a function of each example's key and the index.

    Args:
        keys: one key for each example (`example_keys`).
        index: the number of the draw.
        shape: (batch, ...).

    Returns:
        float32 of `shape`.
    """
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape[1:], jnp.float32))(keys)
