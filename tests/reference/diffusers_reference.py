"""The U-Net held against an independent implementation: diffusers' `UNet2DModel` with the same weights.

    pip install -e . torch diffusers
    python tests/reference/diffusers_reference.py          # one minute on two CPU cores

writes tests/reference/unet.npz, diffusers' outputs for three small networks, and prints how far ours are
from them, and from diffusers' for the published CIFAR-10 network.  Expect differences near 1e-5.

No weights are stored.  A weight is a function of its path and shape (`weight`), the inputs are a function
of the case (`inputs`); both are made of raw PCG64 output, which NumPy promises not to change, so the test
makes the same numbers without torch.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.interop.names import ParamPath, to_diffusers
from ddpm_jax.interop.unet_config import write_config
from ddpm_jax.nets.unet import UNet

REFERENCE = Path(__file__).parent / "unet.npz"


def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 numbers uniform on [-sqrt(3), sqrt(3)], so with mean 0 and variance 1, a function of (name, shape)."""
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
    uniform = (raw >> np.uint64(11)) * 2.0**-53
    return (np.sqrt(12.0) * (uniform - 0.5)).astype(np.float32).reshape(shape)


def weight(path: ParamPath, shape: tuple[int, ...]) -> np.ndarray:
    """The parameter at `path`: every layer does something and keeps its input's size, also those that start near 0."""
    values = numbers("/".join(path), shape)
    if path[-1] == "kernel":
        return values / np.sqrt(np.prod(shape[:-1]), dtype=np.float32)
    if path[-1] == "embedding":
        return values
    return 0.1 * values + np.float32(path[-1] == "scale")


@dataclass(frozen=True)
class Case:
    """A network and the shape of its input, [batch, height, width, channels]."""

    spec: UNet
    shape: tuple[int, int, int, int]


CASES = {
    # The CIFAR-10 network, narrower.
    "cifar": Case(UNet(channels=16, norm_groups=8), (2, 32, 32, 3)),
    # Classes, two heads, twice the channels out.
    "heads": Case(
        UNet(
            channels=32,
            channel_multipliers=(1, 1),
            attention_resolutions=(8,),
            num_heads=2,
            num_classes=10,
            out_multiplier=2,
            norm_groups=8,
        ),
        (3, 8, 8, 1),
    ),
    # Not square, no attention but in the middle.
    "wide": Case(
        UNet(channels=24, channel_multipliers=(1, 3, 2), num_res_blocks=1, attention_resolutions=(), norm_groups=4),
        (2, 16, 24, 4),
    ),
}
CIFAR10 = Case(UNet(), (2, 32, 32, 3))


class Inputs(NamedTuple):
    """What the network of a case is called with."""

    z: np.ndarray
    t: np.ndarray
    labels: np.ndarray | None


def inputs(name: str, case: Case) -> Inputs:
    """z of unit variance, t from 1 to 1000, and labels where the network takes them."""
    batch = case.shape[0]
    labels = None if case.spec.num_classes is None else np.arange(batch, dtype=np.int32) % case.spec.num_classes
    return Inputs(numbers(name, case.shape), np.linspace(1, 1000, batch).astype(np.int32), labels)


def parameters(case: Case) -> Any:
    """The network's parameters, by the recipe `weight`."""
    shapes = jax.eval_shape(lambda key: case.spec.init(key, case.shape[1:]), jax.random.key(0))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: weight(tuple(entry.key for entry in path), leaf.shape), shapes
    )


def ours(name: str, case: Case, apply: Callable[..., jax.Array]) -> np.ndarray:
    """Our network's output for a case; apply(net, z, t) calls the network."""
    z, t, labels = inputs(name, case)
    net = case.spec.bind(parameters(case), labels=None if labels is None else jnp.asarray(labels))
    return np.asarray(apply(net, z, t))


def diffusers_net(case: Case) -> Any:
    """diffusers' U-Net of the same architecture, in evaluation mode."""
    from diffusers import UNet2DModel  # pyright: ignore[reportMissingImports]

    return UNet2DModel.from_config(write_config(case.spec, case.shape[1:])).eval()


def theirs(name: str, case: Case) -> np.ndarray:
    """diffusers' output for a case, NHWC.  Its timesteps count from 0."""
    import torch  # pyright: ignore[reportMissingImports]

    z, t, labels = inputs(name, case)
    net, levels = diffusers_net(case), len(case.spec.channel_multipliers)
    state = {name: torch.from_numpy(value) for name, value in to_diffusers(parameters(case), levels).items()}
    net.load_state_dict(state, strict=True)
    with torch.no_grad():
        output = net(
            torch.from_numpy(z.transpose(0, 3, 1, 2).copy()),
            torch.from_numpy(t - 1),
            None if labels is None else torch.from_numpy(labels),
        ).sample
    return output.numpy().transpose(0, 2, 3, 1)


def main() -> None:
    """Compare every case, and store diffusers' outputs of the small ones."""
    apply = jax.jit(lambda net, z, t: net(z, t))
    references = {name: theirs(name, case) for name, case in CASES.items()}
    for name, case in {**CASES, "CIFAR-10, as published": CIFAR10}.items():
        reference = references[name] if name in references else theirs(name, case)
        difference = np.abs(ours(name, case, apply) - reference).max()
        print(f"{name}: outputs of std {reference.std():.2f}, largest difference {difference:.1e}")
    REFERENCE.parent.mkdir(exist_ok=True)
    np.savez_compressed(REFERENCE, **references)  # pyright: ignore[reportArgumentType]
    print(f"wrote {REFERENCE} ({REFERENCE.stat().st_size / 1024:.0f} KB)")


if __name__ == "__main__":
    main()
