"""Options of XLA's compiler for networks.

On CPUs XLA has two libraries for convolutions, and chooses the one (YNNPACK) that is slower for all but the smallest.
With the other one (Eigen), training the CIFAR-10 network takes 80% of the time, and sampling the digits network in
large batches 67%.  Matrix products and sums stay with YNNPACK.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

LIBRARY = "xla_cpu_experimental_ynn_fusion_type"
WITHOUT_CONVOLUTIONS = {LIBRARY: "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"}


@cache
def compiler_options(platform: str | None = None) -> dict[str, Any]:
    """Options for `jax.jit(compiler_options=...)`; none if XLA_FLAGS sets them.

    platform: "cpu", "gpu" or "tpu", the devices to compile for; None for JAX's default.
    """
    if (platform or jax.default_backend()) != "cpu" or LIBRARY in os.environ.get("XLA_FLAGS", ""):
        return {}
    try:
        jax.jit(lambda x: x, compiler_options=WITHOUT_CONVOLUTIONS).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:  # another version of XLA, without this option
        return {}
    return WITHOUT_CONVOLUTIONS


@contextmanager
def usual_promotion() -> Iterator[None]:
    """JAX's default promotion of dtypes and ranks, for code of other libraries, which stricter rules would break."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit` with `compiler_options`, for functions that other jitted functions may call."""
    inside = jax.jit(function, **options)

    @cache
    def outermost() -> Callable[..., Any]:
        return jax.jit(function, compiler_options=compiler_options(), **options)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        # While another function is traced, new arrays are tracers too.
        leaves = jax.tree.leaves((args, kwargs, jnp.zeros(())))
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return inside(*args, **kwargs)
        try:
            return outermost()(*args, **kwargs)
        except ValueError as error:  # a function among the arguments closes over a tracer, as in jax.grad
            if "compiler_options" not in str(error):
                raise
        return inside(*args, **kwargs)

    return call


def sum_of_gradients(gradient: Callable[[Any, Any], tuple[Any, Any]], params: Any, parts: Any) -> tuple[Any, Any]:
    """The sum of the gradients of the parts of a batch, computed one after another.

    On CPUs the gradient of a convolution inside a loop is about 20 times slower than outside, so there the loop is
    unrolled.

    Args:
        gradient: a function of (params, one part) to (a tree like params, an array).
        params: a tree of arrays.
        parts: a tree of arrays whose first axis is that of the parts.

    Returns:
        (the sum of the trees, the arrays of all parts stacked).
    """
    zeros, count = jax.tree.map(jnp.zeros_like, params), len(jax.tree.leaves(parts)[0])

    def run(unrolled: bool) -> tuple[Any, Any]:
        def add(total: Any, part: Any) -> tuple[Any, Any]:
            # Zero times the sum so far, which the compiler cannot know to be 0: otherwise all parts run at once.
            after = jax.tree.map(lambda p, sum: p + 0 * sum, params, total) if unrolled else params
            found, rest = gradient(after, part)
            return jax.tree.map(jnp.add, total, found), rest

        return jax.lax.scan(add, zeros, parts, unroll=count if unrolled else 1)

    return jax.lax.platform_dependent(cpu=lambda: run(True), default=lambda: run(False))
