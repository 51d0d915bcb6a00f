"""Convolutions whose kernel gradient is fast on CPUs too.

XLA's CPU backend computes the gradient of a kernel as one product of matrices, in which the sum runs over all places of
all images.  It does not cut that sum into parts that stay in the processor's caches: from some thousand places on, it
runs at a third of the speed of the convolution itself.  So it is cut here, into parts of the batch.
"""

from typing import Any

import jax
import jax.numpy as jnp

PLACES = 1024
"""Of the sum over places, a part has at most as many, where MOST_PARTS allow."""
MOST_PARTS = 16
"""Parts, at most: each is a convolution to compile."""


def convolution(x: Any, kernel: Any, strides: Any, padding: Any, **options: Any) -> Any:
    """`jax.lax.conv_general_dilated` of a batch, x [batch, height, width, channels]; all its derivatives exist."""

    def plain(x: Any, kernel: Any) -> Any:
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)

    def in_parts(x: Any, kernel: Any) -> Any:
        # Part j has the images i = j modulo the number of parts, so that every device goes on with those it has.
        cut = x.reshape(-1, count_parts(x.shape), *x.shape[1:])
        y = jnp.stack([plain(cut[:, j], kernel) for j in range(cut.shape[1])], axis=1)
        return y.reshape(-1, *y.shape[2:])

    convolve = jax.custom_jvp(plain)

    @convolve.defjvp
    def forwards(primals: Any, tangents: Any) -> Any:  # whose transpose, part by part, is the gradient
        (x, kernel), (dx, dkernel) = primals, tangents
        of_kernel = jax.lax.platform_dependent(x, dkernel, cpu=in_parts, default=plain)
        return plain(x, kernel), plain(dx, kernel) + of_kernel

    return convolve(x, kernel)


def count_parts(shape: tuple[int, ...]) -> int:
    """In how many equal parts of a batch, [batch, height, width, channels], the sum is taken."""
    batch, height, width, _ = shape
    divisors = [parts for parts in range(1, MOST_PARTS + 1) if batch % parts == 0]
    return next((parts for parts in divisors if batch // parts * height * width <= PLACES), divisors[-1])
