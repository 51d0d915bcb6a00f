"""The U-Net of Ho et al. 2020 (appendix B), exactly as published.

Down: at each level `num_res_blocks` residual blocks, each followed by attention if the feature map's
height is listed, then half the size.  Middle: block, attention, block.  Up: the same levels backwards
with one block more, each block taking one skip from the way down; then twice the size.

The last fields of UNet are for networks trained with other libraries (`ddpm_jax.interop`).

The CIFAR-10 network, UNet(), has 35,746,307 parameters for 32x32x3; the 256-pixel one,
channel_multipliers (1, 1, 2, 2, 4, 4), has 113,673,219.
"""

import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddpm_jax.devices.axes import evaluate_automatically, lies_explicitly
from ddpm_jax.diffusion.arrays import Images, Key, Time, check_timesteps, stream, type_of_array
from ddpm_jax.diffusion.process import Process
from ddpm_jax.errors import check_fields, require, require_int, require_key, require_shape
from ddpm_jax.nets.embed import seen
from ddpm_jax.nets.init import initialise
from ddpm_jax.nets.unet_module import UNetModule

Params = Any
Labels = Int[type_of_array, " batch"]


@dataclass(frozen=True)
class UNet:
    """A U-Net; the defaults are the CIFAR-10 network of Ho et al. 2020."""

    channels: int = 128
    """Channels of the first level."""
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 2)
    """Channels of each level, as multiples of `channels`; the size halves from level to level."""
    num_res_blocks: int = 2
    """Residual blocks of each level on the way down (one more on the way up)."""
    attention_resolutions: tuple[int, ...] = (16,)
    """Heights of the feature maps that have attention after every block; () for the middle only."""
    dropout: float = 0.1
    """Dropout rate in the residual blocks, in training."""
    num_heads: int = 1
    """Attention heads."""
    head_channels: int | None = None
    """Channels of an attention head, so that wider levels have more heads; None for num_heads at every level."""
    num_classes: int | None = None
    """Number of class labels 0..num_classes-1; None for an unconditional network."""
    label_dropout: float = 0.0
    """The probability that training replaces a label by the null label, for guidance; 0 for no null label."""
    out_multiplier: int = 1
    """Output channels, as a multiple of the image's: 2 if the network also predicts variances."""
    patch_size: int = 1
    """The network sees the image as patches of this height and width, their pixels as channels: fewer places for less
    time (Hoogeboom et al. 2023, 2301.11093)."""
    norm_groups: int = 32
    """Groups of the normalisation; if they do not divide the channels, the largest smaller number that does."""
    min_group_size: int = 2
    """Channels that a group has at least; alone in its group, a channel loses what the embedding of t adds to it."""
    norm_epsilon: float = 1e-6
    """Added to the variance in the normalisation."""
    adaptive_norm: bool = False
    """The embedding scales and shifts what the second normalisation of a block gives (Dhariwal & Nichol 2021, section
    3); False: it is added before that, as published."""
    middle_attention: Literal["normalised", "plain", "none"] = "normalised"
    """Attention between the two blocks in the middle: of what a normalisation gives, as published, without it, none."""
    frequency_shift: float = 1.0
    """The frequencies of the embedding of t are 10000^(-i / (half - frequency_shift)), i = 0..half-1."""
    cos_first: bool = False
    """The embedding of t begins with the cosines; False: with the sines, as published."""
    pad_both_sides: bool = False
    """Convolutions that halve the size pad at both ends; False: at the end only, as published."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the layers compute in; parameters, statistics, softmax and output are float32 always."""
    remat: bool = False
    """Recompute each block in the backward pass, for less memory and about a third more time."""

    def __post_init__(self) -> None:
        check_fields(self)
        positive = ("channels", "num_res_blocks", "num_heads", "out_multiplier", "patch_size")
        for field in (*positive, "norm_groups", "min_group_size"):
            require_int(field, getattr(self, field), 1, "at least 1")
        require("channels", self.channels, self.channels >= 2, "at least 2")
        multipliers = self.channel_multipliers
        positive = len(multipliers) > 0 and min(multipliers) >= 1
        require("channel_multipliers", multipliers, positive, "one or more whole numbers of at least 1")
        require("dropout", self.dropout, 0 <= self.dropout < 1, "0 or more, less than 1")
        classes = self.num_classes
        require("num_classes", classes, classes is None or classes >= 1, "None or at least 1")
        require("label_dropout", self.label_dropout, 0 <= self.label_dropout < 1, "0 or more, less than 1")
        labelled = classes is not None or self.label_dropout == 0
        require("label_dropout", self.label_dropout, labelled, "0, as num_classes is None")
        self._check_variants()
        heads = "num_heads" if self.head_channels is None else "head_channels"
        size = self.head_channels or self.num_heads
        for level, width in enumerate(self.channels * multiplier for multiplier in multipliers):
            if width % size:
                raise ValueError(f"{heads} is {size}, which does not divide the {width} channels of level {level}")

    def _check_variants(self) -> None:
        """Raise ValueError if a field that departs from the published network is wrong."""
        alone = self.head_channels is None or (self.head_channels >= 1 and self.num_heads == 1)
        require("head_channels", self.head_channels, alone, "None, or at least 1 with num_heads = 1")
        require("norm_epsilon", self.norm_epsilon, 0 < self.norm_epsilon < 1, "more than 0, less than 1")
        # A single frequency is 1 whatever the shift.
        below = 0 <= self.frequency_shift < max(self.channels // 2, 2)
        require("frequency_shift", self.frequency_shift, below, f"0 or more, less than {max(self.channels // 2, 2)}")

    @property
    def null_label(self) -> int | None:
        """The label that means no label, num_classes; None if the network has no such label."""
        return self.num_classes if self.label_dropout > 0 else None

    @property
    def is_random(self) -> bool:
        """Whether training draws random numbers in the network."""
        return self.dropout > 0 or self.label_dropout > 0

    def init(self, key: Key, image_shape: tuple[int, int, int]) -> Params:
        """Fresh float32 parameters.

        Args:
            key: the key.
            image_shape: (height, width, channels).

        Raises:
            ValueError: the height or width is not divisible by patch_size 2^(levels - 1).
        """
        require_key(key)
        sizes = require_shape("image_shape", image_shape, "(height, width, channels)")
        self.check_shape(sizes)
        heights = [(sizes[0] // self.patch_size) >> level for level in range(len(self.channel_multipliers))]
        if absent := set(self.attention_resolutions) - set(heights):
            message = f"attention_resolutions: no feature map has height {', '.join(map(str, sorted(absent)))}"
            warnings.warn(f"{message}; those of this network have {', '.join(map(str, heights))}", stacklevel=2)
        return initialise(key, parameter_shapes(self, sizes))

    @property
    def takes_process(self) -> bool:
        return True

    def bind(
        self,
        params: Params,
        labels: Labels | None = None,
        dropout_key: Key | None = None,
        process: Process | None = None,
    ) -> "BoundNet":
        """predict(z_t, t) with these parameters.

        Args:
            params: the parameters, as `init` returns them.
            labels: int [batch], in 0..num_classes-1 or `null_label`, for a class-conditional network.
            dropout_key: the key of dropout and of label dropout, in training; None for neither.
            process: the forward process; None for any chain.

        Raises:
            ValueError: labels are missing, or given to an unconditional network, or out of range.
        """
        if self.num_classes is None:
            if labels is not None:
                raise ValueError("num_classes is None; bind expects no labels")
        else:
            last = self.num_classes - 1 if self.null_label is None else self.null_label
            if labels is None or np.ndim(labels) != 1:
                raise ValueError(f"num_classes is {self.num_classes}; bind expects labels, [batch] integers, 0..{last}")
            check_timesteps(labels, 0, last, "labels")
            labels = jnp.asarray(labels)
        return BoundNet(params, labels, dropout_key, process, self)

    def check_shape(self, image_shape: tuple[int, ...]) -> None:
        """Raise ValueError unless height and width halve evenly from level to level."""
        if len(image_shape) != 3:
            raise ValueError(f"image_shape is {image_shape}; expected (height, width, channels)")
        factor = self.patch_size * 2 ** (len(self.channel_multipliers) - 1)
        for axis, size in zip(("height", "width"), image_shape[:2], strict=True):
            if size % factor or size < factor:
                below, above = size // factor * factor, (size // factor + 1) * factor
                nearest = f"{below} and {above}" if below else str(above)
                parts = f"{len(self.channel_multipliers)} levels"
                parts += "" if self.patch_size == 1 else f" and patches of {self.patch_size}"
                raise ValueError(
                    f"image {axis} is {size}; with {parts} it must be divisible by {factor}: "
                    f"the nearest sizes are {nearest}"
                )

    def _module(self, image_channels: int, training: bool) -> UNetModule:
        return UNetModule(self, self.out_multiplier * image_channels, training)


@cache
def parameter_shapes(spec: UNet, image_shape: tuple[int, ...]) -> Any:
    """The shapes and dtypes of the parameters of a network."""
    batch = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    one = jax.ShapeDtypeStruct((1,), jnp.int32)
    labels = None if spec.num_classes is None else one
    module = spec._module(image_shape[-1], False)
    return jax.eval_shape(module.init, jax.eval_shape(lambda: jax.random.key(0)), batch, one, labels)["params"]


@flax.struct.dataclass(eq=False)  # compared and hashed by identity, as functions are
class BoundNet:
    """predict(z_t, t) of a U-Net with its parameters, labels and dropout key.

    A function, `jax.jit(predict)`, and a pytree, so that a jitted function takes it as an argument.
    """

    params: Params
    labels: Labels | None
    dropout_key: Any
    process: Process | None
    spec: UNet = flax.struct.field(pytree_node=False)

    def __call__(self, z_t: Images, t: Time) -> Float[Array, "batch height width out"]:
        """The output at z_t, float32, with `out_multiplier` times its channels; t is [batch] or a scalar."""
        if lies_explicitly(z_t):
            return evaluate_automatically(self, z_t, t)
        self.spec.check_shape(z_t.shape[1:])
        if self.labels is not None and len(self.labels) != len(z_t):
            raise ValueError(f"there are {len(self.labels)} labels for a batch of {len(z_t)}")
        module = self.spec._module(z_t.shape[-1], self.dropout_key is not None)
        rngs = {} if self.dropout_key is None else {"dropout": self.dropout_key}
        z, label = seen(self.process, z_t, t)
        return jnp.asarray(module.apply({"params": self.params}, z, label, self._seen_labels(), rngs=rngs))

    def _seen_labels(self) -> Labels | None:
        """The labels; in training, some of them replaced by the null label."""
        null, labels = self.spec.null_label, self.labels
        if self.dropout_key is None or null is None or labels is None:
            return labels
        dropped = jax.random.bernoulli(stream(self.dropout_key, "labels"), self.spec.label_dropout, labels.shape)
        return jnp.where(dropped, null, labels)
