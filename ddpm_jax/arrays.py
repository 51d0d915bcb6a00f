"""The vocabulary every other file speaks: shapes of arrays, timesteps, and streams of random keys.

Shapes.  A batch of data is [batch, ...]: images are [batch, height, width, channels] in [-1, 1], but
every formula also holds for points in the plane or on the line.  A timestep t is an integer, one per
example or one for all; t = 0 is clean data and t = T is (nearly) pure noise.

Randomness.  Every draw is a function of (seed, name of the stream, step, example): `stream` separates
the names, `jax.random.fold_in` the steps, `example_keys` the examples.
"""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import jaxtyping
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8, UInt32

type_of_array = jax.Array | np.ndarray

Batch = Float[type_of_array, "batch *dims"]  # data, latents, noise, network outputs
PerExample = Float[Array, " batch"]
Images = Float[type_of_array, "batch height width channels"]  # in [-1, 1]
Pixels = UInt8[type_of_array, "batch height width channels"]  # 0..255
Table = Float[Array, " steps"]  # one number for each t = 0..T
Timesteps = Int[type_of_array, " batch"] | Int[type_of_array, ""] | int
Key = PRNGKeyArray | UInt32[Array, "2"]
Keys = jaxtyping.Key[Array, " batch"] | UInt32[Array, "batch 2"]

# The seam between the mathematics and the networks: output = predict(z_t, t), whatever made it.
Predict = Callable[[Any, Any], Any]


def lookup(table: Table, t: Timesteps, like: Batch) -> Float[Array, "*broadcastable"]:
    """table[t], one number per example, shaped [batch, 1, ..., 1] to broadcast against `like`.

    A scalar t gives [1, ..., 1].
    """
    values = table[jnp.asarray(t)]
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def check_timesteps(t: Timesteps, first: int, last: int, name: str = "t") -> None:
    """Raise ValueError unless every timestep lies in first..last.

    Under `jit` the values are not known and indices are clamped by JAX, so only concrete timesteps
    are checked.
    """
    if isinstance(t, jax.core.Tracer):
        return
    values = np.asarray(t)
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{name} has dtype {values.dtype}; timesteps are integers in {first}..{last}")
    outside = values[(values < first) | (values > last)]
    if outside.size:
        raise ValueError(f"{name} = {outside.flat[0]} is outside {first}..{last}")


def stream(key: Key, name: str) -> Key:
    """The key of the stream of random numbers called `name`, independent of every other stream."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def example_keys(key: Key, first_index: Int[Array, ""] | int, batch: int) -> Keys:
    """One key for each example first_index, ..., first_index + batch - 1.

    Key i depends on (key, i) only, so image i is the same image in any batch on any mesh.
    """
    indices = jnp.asarray(first_index, jnp.uint32) + jnp.arange(batch, dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)
