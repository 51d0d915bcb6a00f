"""A convolution that transposes its kernel late, for less memory in training on a CPU.

The derivative by x convolves with the transposed kernel, which depends on nothing but the parameters: so XLA, which
knows no better on CPUs, transposes the kernels of all layers at the start of a step and keeps them until the gradient
comes back to each, a fifth of the working memory.  Here the kernel that is transposed has zero times a part of that
gradient added, and so waits for it.

It is a primitive, and not `jax.custom_vjp`, which would forbid forward mode and with it the likelihood.
"""

from functools import partial
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

TRANSPOSED_LATE = "convolution_transposed_late"


def convolve(x: Array, kernel: Array, strides: Any, padding: Any, **options: Any) -> Array:
    """`jax.lax.conv_general_dilated`, with the same arguments, shapes and errors, and all its derivatives."""
    # On several devices a part of the gradient would have to be sent from one to the others.
    late = jax.default_backend() == "cpu" and jax.device_count() == 1
    return (transposed_late if late else jax.lax.conv_general_dilated)(x, kernel, strides, padding, **options)


def transposed_late(x: Array, kernel: Array, strides: Any, padding: Any, **options: Any) -> Array:
    """The same, with the late transposition on any devices."""
    padding = padding if isinstance(padding, str) else tuple(map(tuple, padding))
    return _late.bind(x, kernel, window_strides=tuple(strides), padding=padding, **options)


def _gradient_by_x(gradient: Array, x: Any, kernel: Array, **options: Any) -> Array:
    # Not zero times the gradient itself: if that is infinite in one image, the others' is to stay what it is.
    some = gradient[(0,) * gradient.ndim] > 0
    plain = partial(jax.lax.conv_general_dilated, rhs=kernel + 0 * some.astype(kernel.dtype), **options)
    return jax.linear_transpose(plain, x.aval)(gradient)[0]


def _gradient_by_kernel(gradient: Array, x: Array, kernel: Any, **options: Any) -> Array:
    return jax.linear_transpose(partial(jax.lax.conv_general_dilated, x, **options), kernel.aval)(gradient)[0]


def _of_many(arrays: Any, axes: Any, **options: Any) -> tuple[Array, int]:
    """Under `jax.vmap`, which has convolutions of groups of its own."""
    return jax.vmap(partial(jax.lax.conv_general_dilated, **options), axes)(*arrays), 0


def _shape(x: Any, kernel: Any, **options: Any) -> Any:
    shape = jax.eval_shape(partial(jax.lax.conv_general_dilated, **options), x, kernel)
    return x.update(shape=shape.shape, dtype=shape.dtype)


_late = Primitive(TRANSPOSED_LATE)
_late.def_impl(jax.lax.conv_general_dilated)
_late.def_abstract_eval(_shape)
ad.defbilinear(_late, _gradient_by_x, _gradient_by_kernel)
batching.primitive_batchers[_late] = _of_many
mlir.register_lowering(_late, mlir.lower_fun(jax.lax.conv_general_dilated, multiple_results=False))
