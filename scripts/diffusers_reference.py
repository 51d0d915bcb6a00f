"""The U-Net held against an independent implementation: diffusers' `UNet2DModel` with the same weights.

    pip install -e . torch diffusers
    python scripts/diffusers_reference.py          # one minute on two CPU cores

writes tests/reference/unet.npz, diffusers' outputs for three small networks, and prints how far ours are
from them, and from diffusers' for the published CIFAR-10 network.  Expect differences near 1e-5.

No weights are stored.  A weight is a function of its path and shape (`weight`), the inputs are a function
of the case (`inputs`); both are made of raw PCG64 output, which NumPy promises not to change, so the test
makes the same numbers without torch.
"""

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.nets.unet import UNetSpec

REFERENCE = Path(__file__).parents[1] / "tests" / "reference" / "unet.npz"

# Our layers and diffusers' names of them.  {l} is the level, {m} the level counted from the other end (diffusers
# numbers the way up in the order of execution), {i} the number within the level.
LAYERS = (
    ("conv_in", "conv_in"),
    ("embedding_0", "time_embedding.linear_1"),
    ("embedding_1", "time_embedding.linear_2"),
    ("class_embedding", "class_embedding"),
    ("down_{l}_block_{i}", "down_blocks.{l}.resnets.{i}"),
    ("down_{l}_attention_{i}", "down_blocks.{l}.attentions.{i}"),
    ("down_{l}_downsample", "down_blocks.{l}.downsamplers.0"),
    ("middle_block_{i}", "mid_block.resnets.{i}"),
    ("middle_attention", "mid_block.attentions.0"),
    ("up_{l}_block_{i}", "up_blocks.{m}.resnets.{i}"),
    ("up_{l}_attention_{i}", "up_blocks.{m}.attentions.{i}"),
    ("up_{l}_upsample", "up_blocks.{m}.upsamplers.0"),
    ("norm_out", "conv_norm_out"),
    ("conv_out", "conv_out"),
)
# The parts of a block that are called differently, and the arrays of a layer.
PARTS = {
    "embedding": "time_emb_proj",
    "shortcut": "conv_shortcut",
    "norm": "group_norm",
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "out": "to_out.0",
}
ARRAYS = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}

ParamPath = tuple[str, ...]  # ("down_0_block_1", "conv1", "kernel")


def diffusers_name(path: ParamPath, levels: int) -> str:
    """The name in diffusers' state dict of our parameter at `path` of a U-Net with that many levels."""
    layer, *parts, array = path
    for ours, theirs in LAYERS:
        match = re.fullmatch(re.sub(r"{(\w)}", r"(?P<\1>\\d+)", ours), layer)
        if match:
            numbers = {name: int(digits) for name, digits in match.groupdict().items()}
            name = theirs.format(**numbers, m=levels - 1 - numbers.get("l", 0))
            return ".".join([name, *(PARTS.get(part, part) for part in parts), ARRAYS[array]])
    raise ValueError(f"no layer of a U-Net is called {layer}")


def diffusers_array(path: ParamPath, value: np.ndarray) -> np.ndarray:
    """Our parameter in torch's layout: OIHW for HWIO, [out, in] for [in, out], 1x1 convolution for shortcuts."""
    if path[-1] != "kernel":
        return value
    value = np.moveaxis(value, (-1, -2), (0, 1))
    return value[:, :, None, None] if path[-2] == "shortcut" else value


def paths(tree: Any) -> list[tuple[ParamPath, Any]]:
    """Every (path, leaf) of a tree of nested dicts."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(tuple(entry.key for entry in path), leaf) for path, leaf in leaves]


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

    spec: UNetSpec
    shape: tuple[int, int, int, int]


CASES = {
    # The CIFAR-10 network, narrower.
    "cifar": Case(UNetSpec(channels=16, norm_groups=8), (2, 32, 32, 3)),
    # Classes, two heads, twice the channels out.
    "heads": Case(
        UNetSpec(
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
        UNetSpec(channels=24, channel_multipliers=(1, 3, 2), num_res_blocks=1, attention_resolutions=(), norm_groups=4),
        (2, 16, 24, 4),
    ),
}
CIFAR10 = Case(UNetSpec(), (2, 32, 32, 3))


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

    spec, levels = case.spec, len(case.spec.channel_multipliers)
    listed = [case.shape[1] // 2**level in spec.attention_resolutions for level in range(levels)]
    widths = {spec.channels * spec.channel_multipliers[level] for level in range(levels) if listed[level]}
    widths.add(spec.channels * spec.channel_multipliers[-1])
    if spec.num_heads > 1 and len(widths) > 1:
        raise ValueError("diffusers fixes the size of a head: with several heads, attention must have one width")
    return UNet2DModel(
        in_channels=case.shape[3],
        out_channels=spec.out_multiplier * case.shape[3],
        freq_shift=1,
        flip_sin_to_cos=False,
        down_block_types=tuple("AttnDownBlock2D" if attends else "DownBlock2D" for attends in listed),
        up_block_types=tuple("AttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(listed)),
        block_out_channels=tuple(spec.channels * multiplier for multiplier in spec.channel_multipliers),
        layers_per_block=spec.num_res_blocks,
        downsample_padding=0,
        dropout=spec.dropout,
        attention_head_dim=None if spec.num_heads == 1 else widths.pop() // spec.num_heads,
        norm_num_groups=spec.norm_groups,
        norm_eps=1e-6,
        add_attention=True,
        num_class_embeds=spec.num_classes,
    ).eval()


def theirs(name: str, case: Case) -> np.ndarray:
    """diffusers' output for a case, NHWC.  Its timesteps count from 0."""
    import torch  # pyright: ignore[reportMissingImports]

    z, t, labels = inputs(name, case)
    net, levels = diffusers_net(case), len(case.spec.channel_multipliers)
    state = {
        diffusers_name(path, levels): torch.from_numpy(diffusers_array(path, value).copy())
        for path, value in paths(parameters(case))
    }
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
