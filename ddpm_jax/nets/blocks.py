"""The parts of the U-Net: normalisation, residual block, attention, halving and doubling the size, patches.

Everything is NHWC.  Convolutions and dense layers multiply in `dtype`, and what a block keeps is of `dtype`.  The
statistics of the normalisation, the softmax, and all that is added to features (biases, the embedding, what is
skipped) are float32: the gradient of what is added is a sum over positions, which has to be float32 too.  From a
normalisation to the convolution that follows all is float32, to be rounded once.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.devices.compiler import usual_promotion
from ddpm_jax.nets.layers import conv, dense

Features = Float[Array, "batch height width channels"]
Embedding = Float[Array, "batch size"]


@jax.custom_jvp
def silu(x: Array) -> Array:
    """x sigmoid(x), any shape.  Hendrycks & Gimpel 2016 (1606.08415); Elfwing et al. 2017 (1702.03118).

    Its derivative starts from x again, and with another formula, so that no compiler keeps sigmoid(x) from the forward
    pass for the backward one: that is a seventh of the working memory of training.
    """
    return x * jax.nn.sigmoid(x)


@silu.defjvp
def _silu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    sigmoid = 0.5 * jnp.tanh(0.5 * x) + 0.5
    return silu(x), tangent * (sigmoid * (1 + x * (1 - sigmoid)))


@dataclass(frozen=True)
class Norms:
    """How a network's normalisations group the channels."""

    groups: int
    min_size: int = 2
    """Channels of a group, at least: alone in its group, a channel would lose what the embedding of t adds to it, and
    the network would not know the time."""
    epsilon: float = 1e-6

    def of(self, channels: int) -> int:
        """How many groups `channels` channels have: `groups`, or the most that divide them."""
        most = max(min(self.groups, channels // self.min_size), 1)
        return next(count for count in range(most, 0, -1) if channels % count == 0)


def norm(channels: int, name: str, dtype: str, norms: Norms) -> "GroupNorm":
    """Group normalisation of `channels` channels."""
    return GroupNorm(norms.of(channels), norms.epsilon, dtype, name=name)


class GroupNorm(nn.Module):
    """scale (x - mean) / sqrt(variance + epsilon) + bias, mean and variance those of a group of channels of an image.

    Wu & He 2018 (1803.08494); the parameters are those of `flax.linen.GroupNorm`.  Sums go over the places first, in
    which a processor adds many channels at once, then over the few channels of a group; and x is scaled and shifted by
    one factor and one term of each channel.
    """

    num_groups: int
    epsilon: float
    dtype: str

    @nn.compact
    def __call__(self, x: Features) -> Features:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))

        def of_group(values: Array) -> Array:
            grouped = values.reshape(-1, self.num_groups, channels // self.num_groups)
            return jnp.broadcast_to(grouped.mean(-1, keepdims=True), grouped.shape).reshape(values.shape)

        wide = x.astype(jnp.float32)
        mean, square = (of_group(values.mean((1, 2))) for values in (wide, wide * wide))
        factor = scale[None] * jax.lax.rsqrt(jnp.maximum(square - mean**2, 0.0) + self.epsilon)
        term = bias[None] - mean * factor
        return (wide * factor[:, None, None] + term[:, None, None]).astype(self.dtype)


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
    """x + conv(dropout(silu(norm(conv(silu(norm(x))) + dense(silu(embedding)))))).

    adaptive: norm(conv(...)) (1 + scale) + shift, (scale, shift) = dense(silu(embedding)), in the place of the sum.
    """

    features: int
    dropout: float
    training: bool
    norms: Norms
    adaptive: bool
    dtype: str

    @nn.compact
    def __call__(self, x: Features, embedding: Embedding) -> Float[Array, "batch height width {self.features}"]:
        x = x.astype(jnp.float32)
        h = silu(norm(x.shape[-1], "norm1", "float32", self.norms)(x))
        h = conv(self.features, "conv1", self.dtype, wide=True)(h)
        size = self.features * (2 if self.adaptive else 1)
        condition = dense(size, "embedding", self.dtype, wide=True)(silu(embedding))[:, None, None, :]
        norm2 = norm(self.features, "norm2", "float32", self.norms)
        if self.adaptive:
            scale, shift = jnp.split(condition, 2, axis=-1)
            h = norm2(h) * (1 + scale) + shift
        else:
            h = norm2(h + condition)
        h = nn.Dropout(self.dropout, deterministic=not self.training)(silu(h))
        h = conv(self.features, "conv2", self.dtype, wide=True)(h)
        if x.shape[-1] != self.features:
            x = dense(self.features, "shortcut", self.dtype, wide=True)(x)
        return (x + h).astype(self.dtype)


class AttentionBlock(nn.Module):
    """x + attention over all positions of the normalised x, in `heads` heads; norms: None for x as it is."""

    heads: int
    norms: Norms | None
    dtype: str

    @nn.compact
    def __call__(self, x: Features) -> Features:
        batch, height, width, channels = x.shape
        h = x if self.norms is None else norm(channels, "norm", self.dtype, self.norms)(x)
        h = h.reshape(batch, height * width, channels)
        query, key, value = (
            dense(channels, name, self.dtype)(h).reshape(batch, height * width, self.heads, channels // self.heads)
            for name in ("query", "key", "value")
        )
        with usual_promotion():
            h = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
        return (x.astype(jnp.float32) + dense(channels, "out", self.dtype, wide=True)(h)).astype(self.dtype)


class Downsample(nn.Module):
    """Half the height and width, by a convolution of stride 2, padded at the end or at both ends."""

    both_sides: bool
    dtype: str

    @nn.compact
    def __call__(self, x: Features) -> Float[Array, "batch height//2 width//2 channels"]:
        padding = ((1, 1), (1, 1)) if self.both_sides else "SAME"
        return conv(x.shape[-1], "conv", self.dtype, stride=2, padding=padding)(x)


class Upsample(nn.Module):
    """Twice the height and width: nearest neighbour, then a convolution."""

    dtype: str

    @nn.compact
    def __call__(self, x: Features) -> Float[Array, "batch 2*height 2*width channels"]:
        batch, height, width, channels = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
        return conv(channels, "conv", self.dtype)(x.reshape(batch, 2 * height, 2 * width, channels))
