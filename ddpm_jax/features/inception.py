"""Inception-v3 as FID and the Inception score use it, in JAX.

Szegedy et al. 2016 (1512.00567), with the weights of TensorFlow's graph of 2015-12-05, which Heusel et al. 2017
(1706.08500) took and everyone since.  They were converted for PyTorch by pytorch-fid, and its file is what we read:

    x = (resize(pixels) - 128) / 128            resize: bilinear to 299x299 as TensorFlow 1 did it
    features = mean over positions of Mixed_7c  [b, 2048]
    logits = features @ W                       [b, 1008], without the bias, as the published Inception score has it

Three things differ from the network that torchvision calls by this name, and all of them matter: the mean pools leave
the padding out of their count, the last block has a max pool where it should have a mean, and there are 1008 classes.

A unit is a convolution, batch normalisation with stored statistics (epsilon 1e-3) and a ReLU.  The normalisation is
folded into kernel and bias when the weights are read, in float64.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.devices.precision import quoted
from ddpm_jax.diffusion.arrays import Pixels
from ddpm_jax.features.download import WeightsFile, fetch
from ddpm_jax.features.extractor import PUBLISHED_INCEPTION, Extracted, Extractor, existing_file
from ddpm_jax.storage.torch_weights import read_weights

SIZE = 299
FEATURES, CLASSES = 2048, 1008
EPSILON = 1e-3

# The same file in two places.  Its name ends in the first 8 digits of its sha256, by the convention of torch.hub; in
# full it stands in public code that pins it, beside the second address.
PUBLISHED = WeightsFile(
    name="pt_inception-2015-12-05-6726825d.pth",
    urls=(
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    ),
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
PREPROCESSING = (
    "grey repeated to 3 channels, bilinear to 299x299 as in TensorFlow 1 (no antialiasing, no rounding), "
    "(x - 128) / 128"
)

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
    """Zeros around the image, so that at stride 1 it keeps its size."""


@dataclass(frozen=True)
class Pool:
    """The mean or the largest of 3x3 neighbours: of every place, or of every second without padding."""

    kind: Literal["mean", "max"]
    stride: int = 1


@dataclass(frozen=True)
class Beside:
    """Paths from the same input, their outputs one after another along the channels."""

    paths: tuple["Layer", ...]


# A layer, or several in turn.
Layer = Unit | Pool | Beside | tuple[Any, ...]


def halving(name: str, features: int) -> Unit:
    """3x3, every second place, without padding."""
    return Unit(name, features, (3, 3), 2, padded=False)


def block_a(name: str, pool_features: int) -> Layer:
    """Mixed_5b to 5d, 35x35."""
    one = Unit(f"{name}.branch1x1", 64)
    five = (Unit(f"{name}.branch5x5_1", 48), Unit(f"{name}.branch5x5_2", 64, (5, 5)))
    three = f"{name}.branch3x3dbl"
    double = (Unit(f"{three}_1", 64), Unit(f"{three}_2", 96, (3, 3)), Unit(f"{three}_3", 96, (3, 3)))
    return Beside((one, five, double, (Pool("mean"), Unit(f"{name}.branch_pool", pool_features))))


def block_b(name: str) -> Layer:
    """Mixed_6a, 35x35 to 17x17."""
    three = f"{name}.branch3x3dbl"
    double = (Unit(f"{three}_1", 64), Unit(f"{three}_2", 96, (3, 3)), halving(f"{three}_3", 96))
    return Beside((halving(f"{name}.branch3x3", 384), double, Pool("max", 2)))


def block_c(name: str, width: int) -> Layer:
    """Mixed_6b to 6e, 17x17: 7x7 as 1x7 and 7x1."""
    seven, double = f"{name}.branch7x7", f"{name}.branch7x7dbl"
    once = (Unit(f"{seven}_1", width), Unit(f"{seven}_2", width, (1, 7)), Unit(f"{seven}_3", 192, (7, 1)))
    twice = (
        Unit(f"{double}_1", width),
        Unit(f"{double}_2", width, (7, 1)),
        Unit(f"{double}_3", width, (1, 7)),
        Unit(f"{double}_4", width, (7, 1)),
        Unit(f"{double}_5", 192, (1, 7)),
    )
    return Beside((Unit(f"{name}.branch1x1", 192), once, twice, (Pool("mean"), Unit(f"{name}.branch_pool", 192))))


def block_d(name: str) -> Layer:
    """Mixed_7a, 17x17 to 8x8."""
    three, seven = f"{name}.branch3x3", f"{name}.branch7x7x3"
    last = (Unit(f"{seven}_2", 192, (1, 7)), Unit(f"{seven}_3", 192, (7, 1)), halving(f"{seven}_4", 192))
    return Beside(
        ((Unit(f"{three}_1", 192), halving(f"{three}_2", 320)), (Unit(f"{seven}_1", 192), *last), Pool("max", 2))
    )


def block_e(name: str, pool: Literal["mean", "max"]) -> Layer:
    """Mixed_7b and 7c, 8x8: paths that part once more."""

    def parting(path: str, a: str, b: str) -> Layer:
        return Beside((Unit(f"{path}_{a}", 384, (1, 3)), Unit(f"{path}_{b}", 384, (3, 1))))

    three, double = f"{name}.branch3x3", f"{name}.branch3x3dbl"
    once = (Unit(f"{three}_1", 384), parting(three, "2a", "2b"))
    twice = (Unit(f"{double}_1", 448), Unit(f"{double}_2", 384, (3, 3)), parting(double, "3a", "3b"))
    return Beside((Unit(f"{name}.branch1x1", 320), once, twice, (Pool(pool), Unit(f"{name}.branch_pool", 192))))


# Cut where torch-fidelity names features by their number.
STAGES: dict[str, Layer] = {
    "64": (
        halving("Conv2d_1a_3x3", 32),
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
    # The max pool of the last block is an oddity of the published graph.
    "2048": (block_d("Mixed_7a"), block_e("Mixed_7b", "mean"), block_e("Mixed_7c", "max")),
}


def run_layer(layer: Layer, weights: Weights, x: Activations) -> Output:
    """A layer's output."""
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
    x = jax.lax.conv_general_dilated(
        x,
        weights[f"{unit.name}.kernel"],
        (unit.stride, unit.stride),
        "SAME" if unit.padded else "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return jax.nn.relu(x + weights[f"{unit.name}.bias"][None, None, None])


def _pool(pool: Pool, x: Activations) -> Float[Array, "batch out_height out_width channels"]:
    window, strides, padding = (1, 3, 3, 1), (1, pool.stride, pool.stride, 1), "SAME" if pool.stride == 1 else "VALID"
    if pool.kind == "max":
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)
    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, strides, padding)
    inside = [sum(0 <= place + step < size for step in (-1, 0, 1)) for size in x.shape[1:3] for place in range(size)]
    rows, columns = np.array(inside[: x.shape[1]]), np.array(inside[x.shape[1] :])
    return total / np.outer(rows, columns).astype(np.float32)[None, :, :, None]


def resize(x: Activations, size: int = SIZE) -> Float[Array, "batch {size} {size} channels"]:
    """Bilinear as in TensorFlow 1: place i of the output is place i h / size of the input, corner on corner.

    No antialiasing, so that large images are sampled rather than averaged; past the last row it repeats.
    """
    for axis in (2, 1):
        count = x.shape[axis]
        place = np.arange(size, dtype=np.float32) * np.float32(count / size)
        low = place.astype(np.int32)
        shape = [1, 1, 1, 1]
        shape[axis] = size
        share = (place - low.astype(np.float32)).reshape(shape)
        left = jnp.take(x, low, axis)
        x = left + (jnp.take(x, np.minimum(low + 1, count - 1), axis) - left) * share
    return x


@quoted
def activations(weights: Weights, images: Pixels) -> dict[str, Array]:
    """{"64": [b, 64], "192": ..., "768": ..., "2048": the features, "logits_unbiased": [b, 1008]}.

    images: uint8 [b, height, width, 1 or 3] of any size.  The first three are means over positions on the way.  In full
    float32: rounded factors, TF32 or bfloat16, would move distances by as much as papers report, and make them depend
    on the device.
    """
    if images.shape[-1] not in (1, 3):
        raise ValueError(f"images have {images.shape[-1]} channels; Inception takes grey or RGB images, 1 or 3")
    x = resize(jnp.asarray(images).astype(jnp.float32))
    x = (jnp.repeat(x, 3 // x.shape[-1], -1) - 128.0) / 128.0
    found = {}
    for name, stage in STAGES.items():
        x = run_layer(stage, weights, x)
        found[name] = x.mean((1, 2))
    logits = jnp.matmul(found["2048"], weights["fc.kernel"])
    return {**found, "logits_unbiased": logits}


@quoted
@jax.jit
def _features(weights: Weights, images: Any) -> Extracted:
    found = activations(weights, images)
    return Extracted(found["2048"], found["logits_unbiased"])


def units(layer: Layer, channels: int) -> Iterator[tuple[Unit, int]]:
    """Every unit of a layer, with the number of channels that it is given."""
    match layer:
        case Unit():
            yield layer, channels
        case Beside(paths):
            for path in paths:
                yield from units(path, channels)
        case tuple():
            for part in layer:
                yield from units(part, channels)
                channels = channels_of(part, channels)


def channels_of(layer: Layer, channels: int) -> int:
    """How many channels a layer gives for so many."""
    match layer:
        case Unit():
            return layer.features
        case Pool():
            return channels
        case Beside(paths):
            return sum(channels_of(path, channels) for path in paths)
    for part in layer:
        channels = channels_of(part, channels)
    return channels


def torch_shapes() -> dict[str, tuple[int, ...]]:
    """The names and shapes of the published weights, as torch has them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for unit, channels in units(tuple(STAGES.values()), 3):
        shapes |= unit_shapes(unit, channels)
    return {**shapes, "fc.weight": (CLASSES, FEATURES), "fc.bias": (CLASSES,)}


def unit_shapes(unit: Unit, channels: int) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a unit's weights, as torch has them."""
    statistics = ("weight", "bias", "running_mean", "running_var")
    return {
        f"{unit.name}.conv.weight": (unit.features, channels, *unit.size),
        **{f"{unit.name}.bn.{part}": (unit.features,) for part in statistics},
    }


def fold(state: dict[str, np.ndarray]) -> Weights:
    """Our weights of those of torch, with each normalisation in its convolution.

    gamma (K x - mean) / sqrt(var + 1e-3) + beta = K' x + bias,   K' = K gamma / sqrt(var + 1e-3)
    """
    weights: Weights = {}
    for name in (name.removesuffix(".conv.weight") for name in state if name.endswith(".conv.weight")):
        kernel, gamma, beta, mean, var = (
            np.asarray(state[f"{name}.{part}"], np.float64)
            for part in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
        )
        scale = gamma / np.sqrt(var + EPSILON)
        weights[f"{name}.kernel"] = (kernel.transpose(2, 3, 1, 0) * scale).astype(np.float32)
        weights[f"{name}.bias"] = (beta - mean * scale).astype(np.float32)
    if "fc.weight" in state:
        weights["fc.kernel"] = np.asarray(state["fc.weight"], np.float32).T.copy()
        weights["fc.bias"] = np.asarray(state["fc.bias"], np.float32)
    return weights


def _check(state: dict[str, np.ndarray], path: os.PathLike) -> None:
    """Raise ValueError where these are not the weights of this network."""
    expected = torch_shapes()
    given = {name: array.shape for name, array in state.items() if not name.endswith("num_batches_tracked")}
    wrong = [f"{name} is missing" for name in expected if name not in given]
    wrong += [f"{name} is unknown" for name in given if name not in expected]
    wrong += [f"{n} is {given[n]}, not {expected[n]}" for n in expected if n in given and given[n] != expected[n]]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"{path} does not hold the Inception-v3 of FID ({'; '.join(wrong[:3])}{more}); expected weights as in "
            f"{PUBLISHED.name}, not those of torchvision's network of that name"
        )


def load_inception(path: str | os.PathLike | None = None) -> Extractor:
    """The extractor of FID: 2048 features, and 1008 logits for the Inception score.

    path: a file of the weights, .pth or .safetensors; unless given, the published one, downloaded when first used.
    A file that is not the published one, byte for byte, may hold other weights; the extractor's name says so.

    Raises ValueError where the file holds something else, FileNotFoundError where there is none, and RunError where
    it cannot be downloaded.
    """
    found = (
        fetch(PUBLISHED) if path is None else existing_file(path, "the weights of Inception-v3, .pth or .safetensors")
    )
    with found.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    state = read_weights(found)
    _check(state, found)
    weights = jax.tree.map(jnp.asarray, fold(state))
    name = PUBLISHED_INCEPTION if digest == PUBLISHED.sha256 else "inception-v3, other weights"
    return Extractor(name, digest, PREPROCESSING, jax.tree_util.Partial(_features, weights))
