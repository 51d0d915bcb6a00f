"""Convolutions whose kernel gradient is fast on CPUs too.

XLA's CPU backend computes the gradient of a kernel as one product of matrices, in which the sum runs over all places of
all images.  It does not cut that sum into parts that stay in the processor's caches: from some thousand places on, it
runs at a third of the speed of the convolution itself.  So it is cut here, into parts of the batch.
"""

from typing import Any

import jax
import jax.numpy as jnp

PLACES = 1024
"""Of the sum over places, one part has at most as many (or one image)."""
MOST_PARTS = 16
"""Parts, at most: each is a convolution to compile."""


def convolution(x: Any, kernel: Any, strides: Any, padding: Any, **options: Any) -> Any:
    """`jax.lax.conv_general_dilated` of a batch, x [batch, height, width, channels]; all its derivatives exist."""

    def plain(x: Any, kernel: Any) -> Any:
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)

    def in_parts(x: Any, kernel: Any) -> Any:
        size = images_in_part(x.shape)
        return jnp.concatenate([plain(x[i : i + size], kernel) for i in range(0, len(x), size)])

    convolve = jax.custom_jvp(plain)

    @convolve.defjvp
    def forwards(primals: Any, tangents: Any) -> Any:  # whose transpose, part by part, is the gradient
        (x, kernel), (dx, dkernel) = primals, tangents
        of_kernel = jax.lax.platform_dependent(x, dkernel, cpu=in_parts, default=plain)
        return plain(x, kernel), plain(dx, kernel) + of_kernel

    return convolve(x, kernel)


def images_in_part(shape: tuple[int, ...]) -> int:
    """How many images of a batch, [batch, height, width, channels], the sum is over at once."""
    batch, height, width, _ = shape
    return max(PLACES // (height * width), -(-batch // MOST_PARTS), 1)
