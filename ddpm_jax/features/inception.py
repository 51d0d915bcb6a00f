"""Inception-v3 as FID and the Inception score use it, in JAX.

Szegedy et al. 2016 (1512.00567), with the weights of TensorFlow's graph of 2015-12-05, which Heusel et al. 2017
(1706.08500) used, and everyone since.  pytorch-fid converted them for PyTorch; this module reads that file:

    x = (resize(pixels) - 128) / 128            resize: bilinear to 299x299 as in TensorFlow 1
    features = mean over positions of Mixed_7c  [b, 2048]
    logits = features @ W                       [b, 1008], without the bias, as in the published Inception score

Three things differ from torchvision's network of the same name, and all of them change the features: the mean pools do
not count the padding, the last block has a max pool in place of a mean pool, and there are 1008 classes.

Batch normalisation has epsilon 1e-3.  It is folded into kernel and bias in float64 when the weights are read.
"""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.devices.precision import quoted
from ddpm_jax.diffusion.arrays import Pixels
from ddpm_jax.features.download import WeightsFile, fetch, sha256_of
from ddpm_jax.features.extractor import PUBLISHED_INCEPTION, Extracted, Extractor, existing_file
from ddpm_jax.features.inception_layers import STAGES, Activations, Weights, run_layer, unit_shapes, units
from ddpm_jax.storage.torch_weights import read_weights

__all__ = ["CLASSES", "FEATURES", "PUBLISHED", "activations", "fold", "load_inception", "resize", "torch_shapes"]

SIZE = 299
FEATURES, CLASSES = 2048, 1008
EPSILON = 1e-3

# The same file at two addresses.  Its name ends in the first 8 digits of its sha256, as torch.hub requires.  All 64
# digits are in public code that downloads it from the second address.
PUBLISHED = WeightsFile(
    name="pt_inception-2015-12-05-6726825d.pth",
    urls=(
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    ),
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
PREPROCESSING = "grey repeated to 3 channels, bilinear to 299x299 as in TensorFlow 1 (no antialiasing, no rounding), "
PREPROCESSING += "(x - 128) / 128"


def resize(x: Activations, size: int = SIZE) -> Float[Array, "batch {size} {size} channels"]:
    """Bilinear interpolation as in TensorFlow 1: output pixel i is at input position i h / size.

    There is no antialiasing: large images are sampled, not averaged.  Beyond the last row that row is repeated.

    Args:
        x: the images, of any height and width.
        size: the height and width of the result.

    Returns:
        The resized images.
    """
    for axis in (2, 1):
        count = x.shape[axis]
        place = np.arange(size, dtype=np.float32) * np.float32(count / size)
        low = place.astype(np.int32)
        fraction = (place - low.astype(np.float32)).reshape([size if each == axis else 1 for each in range(4)])
        left = jnp.take(x, low, axis)
        x = left + (jnp.take(x, np.minimum(low + 1, count - 1), axis) - left) * fraction
    return x


@quoted
def activations(weights: Weights, images: Pixels) -> dict[str, Array]:
    """The features of images, and means over positions of three earlier layers.

    All products are computed in full float32.  Factors rounded to TF32 or bfloat16 would change distances by as much as
    papers report, and make them depend on the device.

    Args:
        weights: of `fold`.
        images: uint8 [b, height, width, 1 or 3] of any size.

    Returns:
        {"64": [b, 64], "192": ..., "768": ..., "2048": the features, "logits_unbiased": [b, 1008]}.

    Raises:
        ValueError: the images have another number of channels.
    """
    if images.shape[-1] not in (1, 3):
        raise ValueError(f"images have {images.shape[-1]} channels; Inception takes grey or RGB images, 1 or 3")
    x = resize(jnp.asarray(images).astype(jnp.float32))
    x = (jnp.repeat(x, 3 // x.shape[-1], -1) - 128.0) / 128.0
    found = {}
    for name, stage in STAGES.items():
        x = run_layer(stage, weights, x)
        found[name] = x.mean((1, 2))
    return {**found, "logits_unbiased": jnp.matmul(found["2048"], weights["fc.kernel"])}


@quoted
@jax.jit
def _features(weights: Weights, images: Any) -> Extracted:
    found = activations(weights, images)
    return Extracted(found["2048"], found["logits_unbiased"])


def torch_shapes() -> dict[str, tuple[int, ...]]:
    """The names and shapes of the published weights, as PyTorch stores them."""
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (CLASSES, FEATURES), "fc.bias": (CLASSES,)}
    for unit, channels in units(tuple(STAGES.values()), 3)[0]:
        shapes |= unit_shapes(unit, channels)
    return shapes


def fold(state: dict[str, np.ndarray]) -> Weights:
    """The weights of PyTorch's file, with each normalisation folded into its convolution.

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
    """Raise ValueError unless these are the weights of this network."""
    expected = torch_shapes()
    given = {name: array.shape for name, array in state.items() if not name.endswith("num_batches_tracked")}
    wrong = [f"{name} is missing" for name in expected if name not in given]
    wrong += [f"{name} is unknown" for name in given if name not in expected]
    wrong += [f"{n} is {given[n]}, not {expected[n]}" for n in expected if n in given and given[n] != expected[n]]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        expected = f"weights as in {PUBLISHED.name}, not those of torchvision's network of that name"
        found = f"{path} does not hold the Inception-v3 of FID ({'; '.join(wrong[:3])}{more})"
        raise ValueError(f"{found}; expected {expected}")


def load_inception(path: str | os.PathLike | None = None) -> Extractor:
    """The extractor of FID: 2048 features, and 1008 logits for the Inception score.

    Args:
        path: a file with the weights, .pth or .safetensors; None: the published file, downloaded when first used.

    Returns:
        The extractor.  Its name says whether the file is the published one, byte for byte.

    Raises:
        ValueError: the file does not hold the weights of this network.
        FileNotFoundError: there is no such file.
        RunError: the published file cannot be downloaded.
    """
    what = "the weights of Inception-v3, .pth or .safetensors"
    found = fetch(PUBLISHED) if path is None else existing_file(path, what)
    digest, state = sha256_of(found), read_weights(found)
    _check(state, found)
    weights = jax.tree.map(jnp.asarray, fold(state))
    name = PUBLISHED_INCEPTION if digest == PUBLISHED.sha256 else "inception-v3, other weights"
    return Extractor(name, digest, PREPROCESSING, jax.tree_util.Partial(_features, weights))
