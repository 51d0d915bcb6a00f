"""The layers of Inception-v3 as FID uses it (Szegedy et al. 2016, 1512.00567), as values.

    STAGES                        the network
    run_layer(layer, weights, x)  its output
    units(layer, channels)        its convolutions, whose names and shapes are those of the published weights

A unit is a convolution, batch normalisation with stored statistics and a ReLU.  `inception.fold` folds the
normalisation into kernel and bias.  Two things differ from torchvision's network of the same name: the mean pools do
not count the padding, and the last block has a max pool in place of a mean pool.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

__all__ = ["STAGES", "Beside", "Layer", "Pool", "Unit", "Weights", "run_layer", "unit_shapes", "units"]

Weights = dict[str, Any]
"""{UNIT.kernel: [height, width, in, out], UNIT.bias: [out]} and fc.kernel [2048, 1008], fc.bias [1008]."""
Activations = Float[Array, "batch height width channels"]
Output = Float[Array, "batch out_height out_width out_channels"]


@dataclass(frozen=True)
class Unit:
    """Convolution, normalisation, ReLU."""

    name: str
    features: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True
    """Whether zeros surround the image, so that it keeps its size at stride 1."""


@dataclass(frozen=True)
class Pool:
    """The mean or the largest of 3x3 neighbours: of every place, or of every second without padding."""

    kind: Literal["mean", "max"]
    stride: int = 1


@dataclass(frozen=True)
class Beside:
    """Paths from the same input; their outputs are concatenated along the channels."""

    paths: tuple["Layer", ...]


# A layer, or a sequence of layers.
Layer = Unit | Pool | Beside | tuple[Any, ...]


def _halving(name: str, features: int) -> Unit:
    """A 3x3 convolution of stride 2 without padding."""
    return Unit(name, features, (3, 3), 2, padded=False)


def _path(name: str, *units: tuple[int, int, int]) -> tuple[Unit, ...]:
    """Units NAME_1, NAME_2, ... one after another, each of (features, height, width)."""
    return tuple(Unit(f"{name}_{i}", out, (h, w)) for i, (out, h, w) in enumerate(units, 1))


def block_a(name: str, pool_features: int) -> Layer:
    """Mixed_5b to 5d, 35x35.

    Args:
        name: the name of the block.
        pool_features: the channels of the path with the pool.

    Returns:
        The block.
    """
    one = Unit(f"{name}.branch1x1", 64)
    five = _path(f"{name}.branch5x5", (48, 1, 1), (64, 5, 5))
    double = _path(f"{name}.branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3))
    return Beside((one, five, double, (Pool("mean"), Unit(f"{name}.branch_pool", pool_features))))


def block_b(name: str) -> Layer:
    """Mixed_6a, 35x35 to 17x17."""
    three = f"{name}.branch3x3dbl"
    double = (*_path(three, (64, 1, 1), (96, 3, 3)), _halving(f"{three}_3", 96))
    return Beside((_halving(f"{name}.branch3x3", 384), double, Pool("max", 2)))


def block_c(name: str, width: int) -> Layer:
    """Mixed_6b to 6e, 17x17: 7x7 as 1x7 and 7x1.

    Args:
        name: the name of the block.
        width: the channels between the convolutions.

    Returns:
        The block.
    """
    once = _path(f"{name}.branch7x7", (width, 1, 1), (width, 1, 7), (192, 7, 1))
    sizes = ((width, 1, 1), (width, 7, 1), (width, 1, 7), (width, 7, 1), (192, 1, 7))
    twice = _path(f"{name}.branch7x7dbl", *sizes)
    return Beside((Unit(f"{name}.branch1x1", 192), once, twice, (Pool("mean"), Unit(f"{name}.branch_pool", 192))))


def block_d(name: str) -> Layer:
    """Mixed_7a, 17x17 to 8x8."""
    three, seven = f"{name}.branch3x3", f"{name}.branch7x7x3"
    once = (Unit(f"{three}_1", 192), _halving(f"{three}_2", 320))
    twice = (*_path(seven, (192, 1, 1), (192, 1, 7), (192, 7, 1)), _halving(f"{seven}_4", 192))
    return Beside((once, twice, Pool("max", 2)))


def block_e(name: str, pool: Literal["mean", "max"]) -> Layer:
    """Mixed_7b and 7c, 8x8: two of the paths split again.

    Args:
        name: the name of the block.
        pool: the kind of its pool.

    Returns:
        The block.
    """

    def split(path: str, a: str, b: str) -> Layer:
        return Beside((Unit(f"{path}_{a}", 384, (1, 3)), Unit(f"{path}_{b}", 384, (3, 1))))

    three, double = f"{name}.branch3x3", f"{name}.branch3x3dbl"
    once = (Unit(f"{three}_1", 384), split(three, "2a", "2b"))
    twice = (*_path(double, (448, 1, 1), (384, 3, 3)), split(double, "3a", "3b"))
    return Beside((Unit(f"{name}.branch1x1", 320), once, twice, (Pool(pool), Unit(f"{name}.branch_pool", 192))))


# Split at the layers whose features torch-fidelity names by their number.
STAGES: dict[str, Layer] = {
    "64": (
        _halving("Conv2d_1a_3x3", 32),
        Unit("Conv2d_2a_3x3", 32, (3, 3), padded=False),
        Unit("Conv2d_2b_3x3", 64, (3, 3)),
        Pool("max", 2),
    ),
    "192": (Unit("Conv2d_3b_1x1", 80), Unit("Conv2d_4a_3x3", 192, (3, 3), padded=False), Pool("max", 2)),
    "768": (
        *(block_a(name, features) for name, features in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64))),
        block_b("Mixed_6a"),
        *(block_c(f"Mixed_6{letter}", width) for letter, width in (("b", 128), ("c", 160), ("d", 160), ("e", 192))),
    ),
    # The published graph has a max pool in the last block.
    "2048": (block_d("Mixed_7a"), block_e("Mixed_7b", "mean"), block_e("Mixed_7c", "max")),
}


def run_layer(layer: Layer, weights: Weights, x: Activations) -> Output:
    """The output of a layer.

    Args:
        layer: a layer, or a sequence of layers.
        weights: those of all units, by name.
        x: the input.

    Returns:
        The output.
    """
    match layer:
        case Unit():
            return _unit(layer, weights, x)
        case Pool():
            return _pool(layer, x)
        case Beside(paths):
            return jnp.concatenate([run_layer(path, weights, x) for path in paths], axis=-1)
    for part in layer:
        x = run_layer(part, weights, x)
    return x


def _unit(unit: Unit, weights: Weights, x: Activations) -> Output:
    kernel, strides, padding = weights[f"{unit.name}.kernel"], (unit.stride,) * 2, "SAME" if unit.padded else "VALID"
    x = jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(x + weights[f"{unit.name}.bias"][None, None, None])


def _pool(pool: Pool, x: Activations) -> Float[Array, "batch out_height out_width channels"]:
    window, strides, padding = (1, 3, 3, 1), (1, pool.stride, pool.stride, 1), "SAME" if pool.stride == 1 else "VALID"
    if pool.kind == "max":
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)
    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, strides, padding)
    rows, columns = (np.convolve(np.ones(size), np.ones(3), "same") for size in x.shape[1:3])
    return total / np.outer(rows, columns).astype(np.float32)[None, :, :, None]  # by the pixels inside the image


def units(layer: Layer, channels: int) -> tuple[list[tuple[Unit, int]], int]:
    """The units of a layer.

    Args:
        layer: a layer, or a sequence of layers.
        channels: the number of channels of its input.

    Returns:
        Every unit with the number of channels of its input, and the number of channels of the layer's output.
    """
    match layer:
        case Unit():
            return [(layer, channels)], layer.features
        case Pool():
            return [], channels
        case Beside(paths):
            found = [units(path, channels) for path in paths]
            return [one for part, _ in found for one in part], sum(count for _, count in found)
    inside = []
    for part in layer:
        more, channels = units(part, channels)
        inside += more
    return inside, channels


def unit_shapes(unit: Unit, channels: int) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the weights of a unit, as PyTorch stores them.

    Args:
        unit: the unit.
        channels: the number of channels of its input.

    Returns:
        A shape for each name.
    """
    statistics = ("weight", "bias", "running_mean", "running_var")
    of_norm = {f"{unit.name}.bn.{part}": (unit.features,) for part in statistics}
    return {f"{unit.name}.conv.weight": (unit.features, channels, *unit.size), **of_norm}
