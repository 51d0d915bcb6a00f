"""The parts of the U-Net: normalisation, residual block, attention, halving and doubling the size, patches.

Everything is NHWC.  Convolutions and dense layers compute in `dtype`; the statistics of the
normalisation and the softmax stay float32.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Features = Float[Array, "batch height width channels"]
Embedding = Float[Array, "batch size"]


def conv(features: int, name: str, dtype: str, *, size: int = 3, stride: int = 1) -> nn.Conv:
    """A `size` x `size` convolution; at stride 2, SAME pads (0, 1) on even sizes, as published."""
    return nn.Conv(features, (size, size), stride, "SAME", dtype=dtype, name=name)


def dense(features: int, name: str, dtype: str) -> nn.Dense:
    """A dense layer over the last axis."""
    return nn.Dense(features, dtype=dtype, name=name)


def norm(channels: int, name: str, dtype: str, groups: int) -> nn.GroupNorm:
    """Group normalisation in `groups` groups, or the most that divide `channels`; epsilon 1e-6.

    A group has two channels or more: alone in its group, a channel would lose what the embedding of t
    adds to it, and the network would not know the time.
    """
    most = next(count for count in range(max(min(groups, channels // 2), 1), 0, -1) if channels % count == 0)
    return nn.GroupNorm(most, epsilon=1e-6, dtype=dtype, name=name)


def to_patches(x: Features, size: int) -> Float[Array, "batch rows columns pixels"]:
    """`size` x `size` pixels at each place, all their channels side by side (space to depth)."""
    batch, height, width, channels = x.shape
    cut = x.reshape(batch, height // size, size, width // size, size, channels).swapaxes(2, 3)
    return cut.reshape(batch, height // size, width // size, size * size * channels)


def from_patches(x: Float[Array, "batch rows columns pixels"], size: int) -> Features:
    """The inverse of `to_patches`."""
    batch, rows, columns, pixels = x.shape
    cut = x.reshape(batch, rows, columns, size, size, pixels // size**2).swapaxes(2, 3)
    return cut.reshape(batch, rows * size, columns * size, pixels // size**2)


class ResBlock(nn.Module):
    """x + conv(dropout(silu(norm(conv(silu(norm(x))) + dense(silu(embedding))))))."""

    features: int
    dropout: float
    training: bool
    groups: int
    dtype: str

    @nn.compact
    def __call__(self, x: Features, embedding: Embedding) -> Float[Array, "batch height width {self.features}"]:
        h = conv(self.features, "conv1", self.dtype)(nn.silu(norm(x.shape[-1], "norm1", self.dtype, self.groups)(x)))
        h += dense(self.features, "embedding", self.dtype)(nn.silu(embedding))[:, None, None, :]
        h = nn.silu(norm(self.features, "norm2", self.dtype, self.groups)(h))
        h = nn.Dropout(self.dropout, deterministic=not self.training)(h)
        h = conv(self.features, "conv2", self.dtype)(h)
        if x.shape[-1] != self.features:
            x = dense(self.features, "shortcut", self.dtype)(x)
        return x + h


class AttentionBlock(nn.Module):
    """x + attention over all positions of the normalised x, in `heads` heads."""

    heads: int
    groups: int
    dtype: str

    @nn.compact
    def __call__(self, x: Features) -> Features:
        batch, height, width, channels = x.shape
        h = norm(channels, "norm", self.dtype, self.groups)(x).reshape(batch, height * width, channels)
        query, key, value = (
            dense(channels, name, self.dtype)(h).reshape(batch, height * width, self.heads, channels // self.heads)
            for name in ("query", "key", "value")
        )
        h = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
        return x + dense(channels, "out", self.dtype)(h)


class Downsample(nn.Module):
    """Half the height and width, by a convolution of stride 2."""

    dtype: str

    @nn.compact
    def __call__(self, x: Features) -> Float[Array, "batch height//2 width//2 channels"]:
        return conv(x.shape[-1], "conv", self.dtype, stride=2)(x)


class Upsample(nn.Module):
    """Twice the height and width: nearest neighbour, then a convolution."""

    dtype: str

    @nn.compact
    def __call__(self, x: Features) -> Float[Array, "batch 2*height 2*width channels"]:
        batch, height, width, channels = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
        return conv(channels, "conv", self.dtype)(x.reshape(batch, 2 * height, 2 * width, channels))
