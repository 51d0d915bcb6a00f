"""Inception-v3 held against an independent implementation: torch-fidelity's extractor with the same weights.

    pip install -e . torch torch-fidelity
    python tests/reference/inception_reference.py          # two minutes on two CPU cores

writes what torch-fidelity computes into tests/reference/inception.npz, small files of weights as torch writes them into
tests/reference/, and prints how far ours are.  Expect differences near 1e-6 where features are near 1.

    names       the names and shapes of its weights
    resize      its resize to 299x299 of images of several shapes, every 13th row and column
    block       each kind of block, with few channels in, every 8th (or 2nd of less than 256) channel out
    network     the features and logits of images of several shapes, and means on the way, as many of them

No weights are stored: they are a function of name and shape (`weight`), as in diffusers_reference.py.
"""

import json
import tempfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from diffusers_reference import numbers

from ddpm_jax.features import inception, inception_layers
from ddpm_jax.features.inception_layers import Layer

FOLDER = Path(__file__).parent
REFERENCE = FOLDER / "inception.npz"

# Images [height, width, channels] of the comparisons.
RESIZED = ((28, 28, 1), (64, 48, 3), (299, 299, 1), (512, 512, 1), (330, 170, 1))
IMAGES = ((28, 28, 1), (32, 32, 3), (64, 48, 3), (299, 299, 3), (512, 512, 3))
TAPS = ("64", "192", "768", "2048", "logits_unbiased")
CHANNELS = 12  # that a block is given, of an image of SIDE x SIDE
SIDE = 5
# Our block, torch-fidelity's class of it, and what that takes beside the number of channels.
BLOCKS: dict[str, tuple[Layer, str, dict[str, int]]] = {
    "a": (inception_layers.block_a("a", 8), "InceptionA", {"pool_features": 8}),
    "b": (inception_layers.block_b("b"), "InceptionB", {}),
    "c": (inception_layers.block_c("c", 16), "InceptionC", {"channels_7x7": 16}),
    "d": (inception_layers.block_d("d"), "InceptionD", {}),
    "e1": (inception_layers.block_e("e1", "mean"), "InceptionE_1", {}),
    "e2": (inception_layers.block_e("e2", "max"), "InceptionE_2", {}),
}


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A weight that keeps activations near 1: He et al.'s variance, and a normalisation that does something."""
    values = numbers(name, shape)
    if len(shape) == 4:
        return values * np.sqrt(2 / np.prod(shape[1:]), dtype=np.float32)
    if len(shape) == 2:
        return values * np.sqrt(1 / shape[1], dtype=np.float32)
    if name.endswith("running_var"):
        return 1 + np.float32(0.3) * values
    return np.float32(0.1) * values + np.float32(name.endswith("bn.weight"))


def state_of(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Weights in torch's layout, by the recipe `weight`."""
    return {name: weight(name, shape) for name, shape in shapes.items()}


def shapes_of(layer: Layer, channels: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a layer's weights in torch's layout."""
    return {
        name: shape
        for unit, given in inception_layers.units(layer, channels)[0]
        for name, shape in inception_layers.unit_shapes(unit, given).items()
    }


def pixels(shape: tuple[int, int, int], count: int = 1) -> np.ndarray:
    """uint8 [count, *shape], any of the 256 values: a function of the shape."""
    raw = np.random.PCG64(zlib.crc32(repr(shape).encode())).random_raw(count * int(np.prod(shape)))
    return (raw >> np.uint64(56)).astype(np.uint8).reshape(count, *shape)


def called(shape: tuple[int, ...]) -> str:
    """28x28x1"""
    return "x".join(map(str, shape))


def our_resize(shape: tuple[int, int, int]) -> np.ndarray:
    """Our counterpart of `their_resize`, [299, 299, channels]; the next two are alike."""
    return np.asarray(inception.resize(jnp.asarray(pixels(shape), jnp.float32)))[0]


def our_block(name: str) -> np.ndarray:
    """[height, width, channels]"""
    layer = BLOCKS[name][0]
    x = jax.nn.relu(numbers(name, (1, SIDE, SIDE, CHANNELS)))
    found = inception_layers.run_layer(layer, inception.fold(state_of(shapes_of(layer, CHANNELS))), jnp.asarray(x))
    return np.asarray(found)[0]


def our_network(activations: Any, shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """activations(images): those of inception.activations, with our weights."""
    found = activations(pixels(shape))
    return {tap: np.asarray(found[tap])[0] for tap in TAPS}


def kept(name: str, array: np.ndarray) -> np.ndarray:
    """What is stored of the entry called `name`."""
    if name.startswith("resize"):
        return array[::13, ::13]
    return array[..., :: 2 if array.shape[-1] < 256 else 8]


def torch_of(images: np.ndarray) -> Any:
    """NHWC to torch's NCHW."""
    import torch  # pyright: ignore[reportMissingImports]

    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def torch_state(state: dict[str, np.ndarray]) -> Any:
    """A state dict, with the counters that torch adds."""
    import torch  # pyright: ignore[reportMissingImports]

    found = OrderedDict((name, torch.from_numpy(array)) for name, array in state.items())
    counters = (name.replace("weight", "num_batches_tracked") for name in state if name.endswith("bn.weight"))
    return OrderedDict(found, **{name: torch.tensor(0) for name in counters})


def their_resize(shape: tuple[int, int, int]) -> np.ndarray:
    """torch-fidelity's resize."""
    from torch_fidelity import interpolate_compat_tensorflow as compat  # pyright: ignore[reportMissingImports]

    x = torch_of(pixels(shape)).float()
    resized = compat.interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False)
    return resized.numpy()[0].transpose(1, 2, 0)


def their_block(name: str) -> np.ndarray:
    """torch-fidelity's block."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch_fidelity import feature_extractor_inceptionv3 as theirs  # pyright: ignore[reportMissingImports]

    layer, cls, options = BLOCKS[name]
    block = getattr(theirs, cls)(CHANNELS, **options).eval()
    state = torch_state(state_of(shapes_of(layer, CHANNELS)))
    block.load_state_dict({key.removeprefix(f"{name}."): value for key, value in state.items()}, strict=True)
    with torch.no_grad():
        found = block(torch_of(np.maximum(numbers(name, (1, SIDE, SIDE, CHANNELS)), 0.0)))
    return found.numpy()[0].transpose(1, 2, 0)


def their_extractor(path: Path) -> Any:
    """torch-fidelity's extractor with the weights in a file."""
    from torch_fidelity.feature_extractor_inceptionv3 import (  # pyright: ignore[reportMissingImports]
        FeatureExtractorInceptionV3,
    )

    return FeatureExtractorInceptionV3("reference", list(TAPS), feature_extractor_weights_path=str(path))


def their_network(extractor: Any, shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """torch-fidelity's features; it takes RGB images only."""
    images = pixels(shape)
    found = extractor(torch_of(images.repeat(3 // images.shape[-1], -1)))
    return {tap: array.numpy()[0] for tap, array in zip(TAPS, found, strict=True)}


def write_torch_files() -> None:
    """Small files as torch writes them, in both layouts: views, and every type of number.

    The older layout holds addresses in memory, so its bytes differ from run to run.
    """
    import torch  # pyright: ignore[reportMissingImports]

    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4) / 8
    state = OrderedDict(whole=base, transposed=base.permute(2, 0, 1), part=base[1, :, 1:3], scalar=torch.tensor(7))
    for name in ("float64", "float16", "bfloat16", "int32", "int16", "int8", "uint8", "bool"):
        state[name] = torch.tensor([0, 1, 3]).to(getattr(torch, name))
    state["empty"] = torch.zeros(0, 3)
    state["parameter"] = torch.nn.Parameter(torch.tensor([1.5, -2.0]))
    torch.save(state, FOLDER / "torch_zip.pth")
    torch.save(state, FOLDER / "torch_legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({"model": torch.nn.Linear(1, 1)}, FOLDER / "torch_module.pth")


def main() -> None:
    """Compare, and store what torch-fidelity computes."""
    stored: dict[str, np.ndarray] = {}

    def compare(name: str, ours: np.ndarray, theirs: np.ndarray) -> None:
        stored[name] = kept(name, theirs)
        difference, scale = np.abs(ours - theirs).max(), np.sqrt(np.mean(theirs**2))
        print(f"{name}: numbers near {scale:.3g}, largest difference {difference:.1e}")

    for shape in RESIZED:
        compare(f"resize {called(shape)}", our_resize(shape), their_resize(shape))
    for name in BLOCKS:
        compare(f"block {name}", our_block(name), their_block(name))
    with tempfile.TemporaryDirectory() as folder:
        import torch  # pyright: ignore[reportMissingImports]

        path = Path(folder) / "weights.pth"
        torch.save(torch_state(state_of(inception.torch_shapes())), path)
        extractor = their_extractor(path)
        apply: Any = inception.load_inception(path).apply  # a jax.tree_util.Partial that holds the weights
    activations = jax.jit(inception.activations)
    for shape in IMAGES:
        theirs = their_network(extractor, shape)
        for tap, ours in our_network(lambda images: activations(apply.args[0], images), shape).items():
            compare(f"network {called(shape)} {tap}", ours, theirs[tap])
    names = {name: list(tensor.shape) for name, tensor in extractor.state_dict().items()}
    stored["names"] = np.frombuffer(json.dumps(names).encode(), np.uint8)
    np.savez_compressed(REFERENCE, **stored)  # pyright: ignore[reportArgumentType]
    print(f"wrote {REFERENCE} ({REFERENCE.stat().st_size / 1024:.0f} KB)")
    write_torch_files()


if __name__ == "__main__":
    main()
