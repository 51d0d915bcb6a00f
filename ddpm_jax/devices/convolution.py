"""A convolution that transposes its kernel late, for less memory in training on a CPU.

The derivative by x convolves with the transposed kernel, which depends on nothing but the parameters: so XLA, which
knows no better on CPUs, transposes the kernels of all layers at the start of a step and keeps them until the gradient
comes back to each, a fifth of the working memory.  Here the kernel that is transposed has zero times a part of that
gradient added, and so waits for it.  It does so in programs for one CPU only, whatever host they are traced on: that
is known where a program is lowered, so the waiting is a primitive with a lowering rule of its own.

The convolution is a primitive, and not `jax.custom_vjp`, which would forbid forward mode and with it the likelihood.
"""

from functools import partial
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.extend.core.primitives import conv_general_dilated_p
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

TRANSPOSED_LATE = "convolution_transposed_late"


def convolve(x: Array, kernel: Array, strides: Any, padding: Any, **options: Any) -> Array:
    """`jax.lax.conv_general_dilated`, with the same arguments, shapes and errors, and all its derivatives."""
    plain = partial(jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **options)
    *before, convolution = jax.make_jaxpr(plain)(x, kernel).eqns
    # In `jax.shard_map` something comes before, which spreads the kernel over devices.
    return plain(x, kernel) if before else _late.bind(x, kernel, **convolution.params)


def _gradient_by_x(gradient: Array, x: Any, kernel: Array, **params: Any) -> Array:
    plain = partial(conv_general_dilated_p.bind, **params)
    return jax.linear_transpose(lambda x: plain(x, _wait.bind(kernel, gradient)), x.aval)(gradient)[0]


def _gradient_by_kernel(gradient: Array, x: Array, kernel: Any, **params: Any) -> Array:
    return jax.linear_transpose(partial(conv_general_dilated_p.bind, x, **params), kernel.aval)(gradient)[0]


def _of_many(arrays: Any, axes: Any, **params: Any) -> tuple[Array, int]:
    """Under `jax.vmap`, which has convolutions of groups of its own."""
    return jax.vmap(partial(conv_general_dilated_p.bind, **params), axes)(*arrays), 0


def _shape(*avals: Any, **params: Any) -> Any:
    return conv_general_dilated_p.abstract_eval(*avals, **params)[0]


_late = Primitive(TRANSPOSED_LATE)
_late.def_impl(conv_general_dilated_p.bind)
_late.def_abstract_eval(_shape)
ad.defbilinear(_late, _gradient_by_x, _gradient_by_kernel)
batching.primitive_batchers[_late] = _of_many
mlir.register_lowering(_late, mlir.lower_fun(conv_general_dilated_p.bind, multiple_results=False))


def _waited(kernel: Array, gradient: Array) -> Array:
    # Not zero times the gradient itself: if that is infinite in one image, the others' is to stay what it is.
    some = gradient[(0,) * gradient.ndim] > 0
    return kernel + 0 * some.astype(kernel.dtype)


def _lower_wait(context: Any, kernel: Any, gradient: Any) -> Any:
    # On several devices a part of the gradient would have to be sent from one to the others.
    if getattr(context.module_context.axis_context, "num_devices", None) != 1:
        return [kernel]
    return mlir.lower_fun(_waited, multiple_results=False)(context, kernel, gradient)


# wait(kernel, gradient): the kernel, not before the gradient is there.
_wait = Primitive("wait")
_wait.def_impl(lambda kernel, _: kernel)
_wait.def_abstract_eval(lambda kernel, _: kernel)
ad.primitive_jvps[_wait] = lambda primals, tangents: (_wait.bind(*primals), tangents[0])
batching.primitive_batchers[_wait] = lambda arrays, axes: (_wait.bind(*arrays), axes[0])
mlir.register_lowering(_wait, lambda _, kernel, gradient: [kernel])
mlir.register_lowering(_wait, _lower_wait, platform="cpu")
