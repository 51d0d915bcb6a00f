"""Float64 on the host, for numbers that are computed once: JAX's default is float32 everywhere."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def in_float64(function: Callable[..., Any], *args: Any) -> Any:
    """function(*args) as NumPy arrays of float64, computed now, also while a caller is being traced.

    Args:
        function: a function of JAX arrays.
        args: known numbers, not tracers.
    """
    try:
        place = jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out; other devices compute in float64 more slowly
        place = nullcontext()
    # Tables of float32 among the numbers become float64, also where types must be equal.
    usual = jax.numpy_dtype_promotion("standard")
    with jax.ensure_compile_time_eval(), jax.enable_x64(True), usual, place:
        found = function(*(jnp.asarray(np.asarray(arg, np.float64)) for arg in args))
        return jax.tree.map(np.asarray, found)
