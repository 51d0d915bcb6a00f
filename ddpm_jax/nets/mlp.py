"""A residual network of dense layers: what the U-Net is for images, for points and other data of few elements.

    e = embedding of t, a sinusoid and two dense layers
    h = dense([z, sin 2^i z, cos 2^i z for i = 0..waves-1])
    `depth` times:  h = h + dense(silu(dense(silu(h)) + e));
    output = dense(silu(h))

The blocks' last layers and the network's start at (nearly) 0, as the U-Net's do.
"""

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.devices.axes import evaluate_automatically, lies_explicitly
from ddpm_jax.diffusion.arrays import Batch, Key, Time
from ddpm_jax.diffusion.process import Process
from ddpm_jax.errors import check_fields, require_int, require_key, require_shape
from ddpm_jax.nets.blocks import silu
from ddpm_jax.nets.embed import seen, timestep_embedding
from ddpm_jax.nets.init import initialise
from ddpm_jax.nets.layers import dense
from ddpm_jax.nets.network import Network


@dataclass(frozen=True)
class Mlp(Network):
    """A network for data [batch, ...] of few elements; the output is shaped like the data, all float32."""

    width: int = 128
    """Units of a layer."""
    depth: int = 3
    """Residual blocks."""
    waves: int = 0
    """Octaves of waves of each element that the first layer also sees: they let a small network learn fine structure,
    such as many narrow modes, early (Tancik et al. 2020, arXiv 2006.10739)."""
    out_multiplier: int = 1
    """2 if the variance is learned: the last axis is then twice as long."""

    def __post_init__(self) -> None:
        check_fields(self)
        require_int("width", self.width, 2)
        require_int("depth", self.depth, 1)
        require_int("waves", self.waves, 0)
        require_int("out_multiplier", self.out_multiplier, 1)

    def init(self, key: Key, shape: tuple[int, ...]) -> Any:
        """Fresh parameters for examples of `shape`; () for numbers.

        Args:
            key: the key.
            shape: the shape of an example, without the batch; () for numbers.

        Raises:
            ValueError: key is not a key, or shape not a shape.
        """
        require_key(key)
        shape = require_shape("shape", shape, "the shape of an example")
        batch, t = jax.ShapeDtypeStruct((1, *shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
        return initialise(key, jax.eval_shape(_Mlp(self).init, key, batch, t)["params"])

    @property
    def takes_process(self) -> bool:
        return True

    def bind(self, params: Any, process: Process | None = None) -> "BoundMlp":
        """predict(z_t, t) with these parameters.

        Args:
            params: what `init` returned, or what training made of it.
            process: the forward process; None for any chain.
        """
        return BoundMlp(params, process, self)


@flax.struct.dataclass(eq=False)  # compared and hashed by identity, as functions are
class BoundMlp:
    """predict(z_t, t) with parameters: a function, and a pytree that a jitted function takes as an argument."""

    params: Any
    process: Process | None
    spec: Mlp = flax.struct.field(pytree_node=False)

    def __call__(self, z_t: Batch, t: Time) -> Float[Array, "batch *out"]:
        """The output at z_t; t is [batch] or one for all."""
        if lies_explicitly(z_t):
            return evaluate_automatically(self, z_t, t)
        return jnp.asarray(_Mlp(self.spec).apply({"params": self.params}, *seen(self.process, z_t, t)))


class _Mlp(nn.Module):
    spec: Mlp

    @nn.compact
    def __call__(self, z: Array, label: Array) -> Array:
        width = self.spec.width
        e = dense(width, "embedding_0", "float32")(timestep_embedding(label, width))
        e = dense(width, "embedding_1", "float32")(silu(e))
        flat = z.reshape(len(z), -1)
        angles = [flat * 2.0**octave for octave in range(self.spec.waves)]
        seen = [flat, *map(jnp.sin, angles), *map(jnp.cos, angles)]
        h = dense(width, "in", "float32")(jnp.concatenate(seen, axis=1))
        for block in range(self.spec.depth):
            h = h + Block(width, name=f"block_{block}")(h, e)
        shape = z.shape if self.spec.out_multiplier == 1 else (*z.shape[:-1], self.spec.out_multiplier * z.shape[-1])
        return dense(math.prod(shape[1:]), "out", "float32")(silu(h)).reshape(shape)


class Block(nn.Module):
    """What is added to h: two dense layers, the embedding of t between them."""

    width: int

    @nn.compact
    def __call__(self, h: Float[Array, "batch width"], e: Float[Array, "batch width"]) -> Float[Array, "batch width"]:
        h = dense(self.width, "hidden", "float32")(silu(h)) + e
        return dense(self.width, "out", "float32")(silu(h))
