"""Convolution and dense layer: products in the network's dtype, the bias added in float32.

    y = x * kernel            in `dtype`
    y + bias                  in float32, then rounded to `dtype`, or as it is with wide=True

The gradient of a bias is a sum over the batch and all positions.  In bfloat16, which has 8 bits, such a sum stops
growing once it is some hundred times as large as its terms; measured errors were up to 80%.  If the addition is in
float32, so is the sum.  In a float32 network nothing is converted.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.devices.convolution import convolve

Padding = str | tuple[tuple[int, int], tuple[int, int]]


def conv(
    features: int,
    name: str,
    dtype: str,
    *,
    size: int = 3,
    stride: int = 1,
    padding: Padding = "SAME",
    wide: bool = False,
) -> "Conv":
    """A `size` x `size` convolution of NHWC data; at stride 2, SAME pads (0, 1) on even sizes, as published."""
    return Conv(features, dtype, wide, size, stride, padding, name=name)


def dense(features: int, name: str, dtype: str, *, wide: bool = False) -> "Dense":
    """A dense layer over the last axis."""
    return Dense(features, dtype, wide, name=name)


class _Layer(nn.Module):
    """Parameters `kernel` and `bias`, float32."""

    features: int
    dtype: str
    wide: bool
    """Return float32, for sums that follow; otherwise `dtype`."""

    def _apply(
        self, x: Float[Array, "*axes channels"], shape: tuple[int, ...], product: Callable[[Array, Array], Array]
    ) -> Float[Array, "*out_axes {self.features}"]:
        """product(x, kernel) + bias, with a kernel of `shape`."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, shape[-1:])
        y = product(jnp.asarray(x, self.dtype), jnp.asarray(kernel, self.dtype)).astype(jnp.float32)
        y += jnp.asarray(bias, jnp.float32).reshape((1,) * (y.ndim - 1) + (-1,))
        return y if self.wide else y.astype(self.dtype)


class Conv(_Layer):
    """A convolution of NHWC data with a bias."""

    size: int
    stride: int
    padding: Padding

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch out_height out_width {self.features}"]:
        shape = (self.size, self.size, x.shape[-1], self.features)
        numbers = jax.lax.conv_dimension_numbers(x.shape, shape, ("NHWC", "HWIO", "NHWC"))
        strides = (self.stride, self.stride)
        return self._apply(
            x, shape, lambda x, kernel: convolve(x, kernel, strides, self.padding, dimension_numbers=numbers)
        )


class Dense(_Layer):
    """A product with a matrix over the last axis, and a bias."""

    @nn.compact
    def __call__(self, x: Float[Array, "*axes channels"]) -> Float[Array, "*axes {self.features}"]:
        return self._apply(x, (x.shape[-1], self.features), lambda x, kernel: jnp.dot(x, kernel))
