"""`UNet` and the config of diffusers' `UNet2DModel`: the same network, or an error that names the difference.

Every field of both is examined.  diffusers lists attention by level, separately for the way down and the way up; here
it is listed by height, the same for both.  All its normalisations have `norm_num_groups` groups; ours have fewer if
that number does not divide the channels.  It fixes the channels of a head; here either they or the number of heads are
fixed.
"""

import dataclasses
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jax

from ddpm_jax.errors import require
from ddpm_jax.interop.fields import Fields
from ddpm_jax.interop.names import paths
from ddpm_jax.nets.blocks import Norms
from ddpm_jax.nets.unet import UNet

__all__ = ["CLASS", "DEFAULTS", "parameter_shapes", "read_config", "write_config"]

CLASS = "UNet2DModel"
# Fields of which our network has one value only; the first is that of diffusers for a field that a config leaves out.
ONE_VALUE: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"),
    "class_embed_type": (None,),
}
# The value that diffusers takes for each field that a config leaves out.
DEFAULTS: dict[str, Any] = {name: values[0] for name, values in ONE_VALUE.items()} | {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "downsample_padding": 1,
    "dropout": 0.0,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
# Fields that EMAModel.save_pretrained of diffusers, in its present or an earlier version, adds to a config.
OF_THE_AVERAGE = frozenset(
    [
        "decay",
        "min_decay",
        "optimization_step",
        "update_after_step",
        "use_ema_warmup",
        "inv_gamma",
        "power",
        "collected_params",
    ]
)
DOWN, UP = ("DownBlock2D", "AttnDownBlock2D"), ("UpBlock2D", "AttnUpBlock2D")


@lru_cache(maxsize=8)  # tracing takes half a second
def parameter_shapes(net: UNet, image_shape: tuple[int, int, int]) -> Any:
    """The shapes of the parameters of a network, found without computing them.

    Args:
        net: the network.
        image_shape: (height, width, channels) of its images.
    """
    return jax.eval_shape(lambda key: net.init(key, image_shape), jax.random.key(0))


def read_config(
    config: Mapping[str, Any], where: str, size: tuple[int, int] | None = None, label_dropout: float = 0.0
) -> tuple[UNet, tuple[int, int, int]]:
    """The network that a config describes.

    Args:
        config: the config.
        where: the name of its file, for messages.
        size: (height, width) of the images; None for the sample_size of the config.
        label_dropout: more than 0 if the last class embedding is that of the null label.

    Returns:
        The network, and its image shape (height, width, channels).

    Raises:
        ValueError: `UNet` cannot express a field; the message names the field, its value and what is accepted.
    """
    class_name = config.get("_class_name", CLASS)
    require(f"{where}: _class_name", class_name, class_name == CLASS, f"{CLASS!r}")
    fields = Fields(config, DEFAULTS, where, OF_THE_AVERAGE)
    for name, accepted in ONE_VALUE.items():
        fields.one_of(name, accepted)
    # num_train_timesteps has no effect: it belongs to a time_embedding_type that is refused above.
    widths, attends = _levels(fields)
    image_shape = (*_size(fields, size), fields.whole("in_channels"))
    classes = fields["num_class_embeds"]
    if label_dropout > 0:
        require("label_dropout", label_dropout, classes is not None, "0, as the network has no class embeddings")
    net = UNet(
        channels=widths[0],
        channel_multipliers=tuple(width // widths[0] for width in widths),
        num_res_blocks=fields.whole("layers_per_block"),
        attention_resolutions=tuple(image_shape[0] >> level for level, listed in enumerate(attends) if listed),
        dropout=fields.number("dropout"),
        num_classes=None if classes is None else fields.whole("num_class_embeds", 2) - (label_dropout > 0),
        label_dropout=label_dropout,
        out_multiplier=_out_multiplier(fields),
        norm_groups=fields.whole("norm_num_groups"),
        norm_epsilon=fields.number("norm_eps"),
        adaptive_norm=fields.one_of("resnet_time_scale_shift", ("default", "scale_shift")) == "scale_shift",
        middle_attention=(middle := _middle_attention(fields)),
        frequency_shift=fields.number("freq_shift"),
        cos_first=fields.flag("flip_sin_to_cos"),
        pad_both_sides=fields.one_of("downsample_padding", (0, 1)) == 1,
        **_heads(fields, {width for width, listed in zip(widths, attends, strict=True) if listed}, widths[-1], middle),
    )
    net.check_shape(image_shape)
    return _with_group_size(fields, net, image_shape), image_shape


def _levels(fields: Fields) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """The channels of each level, and whether it has attention."""
    widths, down, up = fields["block_out_channels"], fields["down_block_types"], fields["up_block_types"]
    are_whole = isinstance(widths, list | tuple) and all(type(width) is int and width > 0 for width in widths)
    fields.require("block_out_channels", are_whole and bool(widths), "a list of whole numbers")
    multiples = all(width % widths[0] == 0 for width in widths)
    fields.require("block_out_channels", multiples, f"multiples of the first, {widths[0]}")
    fields.one_of("time_embedding_dim", (None, 4 * widths[0]))
    known = isinstance(down, list | tuple) and len(down) == len(widths) and all(kind in DOWN for kind in down)
    fields.require("down_block_types", known, f"{len(widths)} of {' or '.join(map(repr, DOWN))}")
    attends = tuple(kind == DOWN[1] for kind in down)
    mirrored = [UP[listed] for listed in reversed(attends)]
    same = isinstance(up, list | tuple) and list(up) == mirrored
    fields.require("up_block_types", same, f"{mirrored}, attention at the same levels as down_block_types")
    return tuple(widths), attends


def _size(fields: Fields, size: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) of the images."""
    if size is not None:
        return size
    given = fields["sample_size"]
    pair = list(given) if isinstance(given, list | tuple) else [given, given]
    holds = len(pair) == 2 and all(type(side) is int and side > 0 for side in pair)
    fields.require("sample_size", holds, "a whole number or a pair of them; otherwise give the size of the images")
    return pair[0], pair[1]


def _out_multiplier(fields: Fields) -> int:
    """The channels of the output as a multiple of the image's: 2 with a learned variance."""
    channels = fields.whole("in_channels")
    return fields.one_of("out_channels", (channels, 2 * channels)) // channels


def _middle_attention(fields: Fields) -> Any:
    """`UNet.middle_attention`; with scale_shift, diffusers normalises it only if attn_norm_num_groups is set."""
    if not fields.flag("add_attention"):
        return "none"
    groups = fields.one_of("attn_norm_num_groups", (None, fields["norm_num_groups"]))
    return "plain" if groups is None and fields["resnet_time_scale_shift"] == "scale_shift" else "normalised"


def _heads(fields: Fields, widths: set[int], last: int, middle: str) -> dict[str, Any]:
    """num_heads if it is the same at all levels, or else head_channels."""
    widths = widths if middle == "none" else widths | {last}
    if fields["attention_head_dim"] is None or not widths:
        return {"num_heads": 1}
    size = fields.whole("attention_head_dim")
    divides = all(width % size == 0 for width in widths)
    expected = f"a divisor of the channels of attention, {', '.join(map(str, sorted(widths)))}, or null"
    fields.require("attention_head_dim", divides, expected)
    counts = {width // size for width in widths}
    return {"num_heads": counts.pop()} if len(counts) == 1 else {"head_channels": size}


def _with_group_size(fields: Fields, net: UNet, image_shape: tuple[int, int, int]) -> UNet:
    """The network with the min_group_size that gives every normalisation as many groups as in diffusers."""
    widths, groups = _norm_widths(net, image_shape), net.norm_groups
    expected = f"a divisor of the channels that are normalised, {', '.join(map(str, sorted(widths)))}"
    fields.require("norm_num_groups", all(width % groups == 0 for width in widths), expected)
    return dataclasses.replace(net, min_group_size=min(2, min(widths) // groups))


def _norm_widths(net: UNet, image_shape: tuple[int, int, int]) -> set[int]:
    """The numbers of channels of the normalisations of a network."""
    return {leaf.shape[0] for path, leaf in paths(parameter_shapes(net, image_shape)) if path[-1] == "scale"}


def _groups(net: UNet, widths: set[int]) -> set[int]:
    """The numbers of groups of normalisations of these channels."""
    norms = Norms(net.norm_groups, net.min_group_size)
    return {norms.of(width) for width in widths}


def write_config(net: UNet, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """The config of diffusers' `UNet2DModel`, with every field; a null label becomes the last class embedding.

    Args:
        net: the network.
        image_shape: (height, width, channels) of its images.

    Raises:
        ValueError: diffusers cannot express a field; the message names the field, its value and what is accepted.
    """
    require("net", type(net).__name__, type(net) is UNet, "UNet, the U-Net that diffusers also has")
    require("net.patch_size", net.patch_size, net.patch_size == 1, "1, as diffusers has no patches")
    height, width, channels = image_shape
    net.check_shape(image_shape)
    levels = range(len(net.channel_multipliers))
    attends = [height >> level in net.attention_resolutions for level in levels]
    first = net.channel_multipliers[0]
    require("net.channel_multipliers", net.channel_multipliers, first == 1, "1 at the first level, as in diffusers")
    groups = _one_group_count(net, image_shape)
    scale_shift = net.adaptive_norm
    if net.middle_attention == "plain":
        require("net.middle_attention", "plain", scale_shift, "'normalised' or 'none', as adaptive_norm is False")
    named = scale_shift and net.middle_attention == "normalised"
    config = {
        "sample_size": height if height == width else [height, width],
        "in_channels": channels,
        "out_channels": net.out_multiplier * channels,
        "freq_shift": int(net.frequency_shift) if net.frequency_shift.is_integer() else net.frequency_shift,
        "flip_sin_to_cos": net.cos_first,
        "down_block_types": [DOWN[listed] for listed in attends],
        "up_block_types": [UP[listed] for listed in reversed(attends)],
        "block_out_channels": [net.channels * multiplier for multiplier in net.channel_multipliers],
        "layers_per_block": net.num_res_blocks,
        "downsample_padding": int(net.pad_both_sides),
        "dropout": net.dropout,
        "attention_head_dim": _head_dim(net, image_shape),
        "norm_num_groups": groups,
        "attn_norm_num_groups": groups if named else None,
        "norm_eps": net.norm_epsilon,
        "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
        "add_attention": net.middle_attention != "none",
        "num_class_embeds": None if net.num_classes is None else net.num_classes + (net.null_label is not None),
    }
    return {"_class_name": CLASS, **DEFAULTS, **config}


def _one_group_count(net: UNet, image_shape: tuple[int, int, int]) -> int:
    """The number of groups of every normalisation, which is one number in diffusers."""
    widths = _norm_widths(net, image_shape)
    groups = _groups(net, widths)
    expected = (
        f"one that gives all normalisations equally many groups, a divisor of {math.gcd(*widths)}: their channels are "
        f"{', '.join(map(str, sorted(widths)))}, and they have {', '.join(map(str, sorted(groups)))} groups"
    )
    require("net.norm_groups", net.norm_groups, len(groups) == 1, expected)
    return groups.pop()


def _head_dim(net: UNet, image_shape: tuple[int, int, int]) -> int | None:
    """The channels of an attention head; None for a single head."""
    if net.head_channels is not None or net.num_heads == 1:
        return net.head_channels
    shapes = paths(parameter_shapes(net, image_shape))
    widths = {leaf.shape[0] for path, leaf in shapes if path[-2:] == ("query", "kernel")}
    expected = f"1 (or head_channels), as attention has {', '.join(map(str, sorted(widths)))} channels"
    require("net.num_heads", net.num_heads, len(widths) <= 1, f"{expected} and diffusers fixes the channels of a head")
    return next((width // net.num_heads for width in widths), None)
