"""How the weights of a network start (the published initialisation of Ho et al. 2020).

    kernel   uniform on [-limit, limit], limit^2 = 3 scale / mean(fan in, fan out), so that its variance
             is scale / mean fan; scale is 1, and 1e-10 for the layers that end a block or the network,
             so that every block starts as (nearly) the identity
    kernel of a layer that takes few numbers, "in"      the same with fan in
    embedding  the same with fan 1: variance 1
    scale    1        bias  0

All random numbers come from a single draw, cut into pieces.  Flax draws for each layer by itself, which
takes 15 s for the CIFAR-10 network on two CPU cores; this takes 4 s.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.arrays import Key

ALMOST_ZERO_LAYERS = frozenset({"conv2", "out", "conv_out"})
# Two numbers that become 128 units come out near 0 by the mean fan.  There silu is a straight line, the network starts
# as a linear one, and on data whose best linear answer is a saddle of the loss, such as a ring, it stays one.
FAN_IN_LAYERS = frozenset({"in"})


def initialise(key: Key, shapes: Any) -> Any:
    """Parameters for a tree of shapes, nested dicts {layer: {kernel, bias, ...}}; float32."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    paths = [tuple(entry.key for entry in path) for path, _ in leaves]
    random = [path[-1] in ("kernel", "embedding") for path in paths]

    def draw(key: Key) -> Any:
        total = sum(leaf.size for (_, leaf), is_random in zip(leaves, random, strict=True) if is_random)
        uniform = jax.lax.optimization_barrier(jax.random.uniform(key, (total,), minval=-1.0, maxval=1.0))
        values, start = [], 0
        for path, (_, leaf), is_random in zip(paths, leaves, random, strict=True):
            if is_random:
                piece = jax.lax.slice(uniform, (start,), (start + leaf.size,))
                values.append(_limit(path, leaf.shape) * piece.reshape(leaf.shape))
                start += leaf.size
            else:
                values.append(jnp.full(leaf.shape, 1.0 if path[-1] == "scale" else 0.0, jnp.float32))
        return jax.tree_util.tree_unflatten(tree, values)

    return jax.jit(draw)(key)


def _limit(path: tuple[str, ...], shape: tuple[int, ...]) -> float:
    """Half the width of the uniform distribution of the kernel or embedding at `path`."""
    if path[-1] == "embedding":
        return math.sqrt(3.0)
    receptive_field = math.prod(shape[:-2])
    fan = receptive_field * (shape[-2] if path[-2] in FAN_IN_LAYERS else (shape[-2] + shape[-1]) / 2)
    scale = 1e-10 if path[-2] in ALMOST_ZERO_LAYERS else 1.0
    return math.sqrt(3.0 * scale / fan)
