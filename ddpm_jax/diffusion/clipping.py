"""What becomes of a predicted x that no image could be: clipped, scaled, or left as it is.

A denoiser that errs at high noise predicts x far outside [-1, 1]; sampling then runs away.  The published
samplers clip (Ho et al. 2020, the code); strong guidance wants the dynamic threshold.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.diffusion.arrays import Batch
from ddpm_jax.errors import convert_numbers, require


@dataclass(frozen=True)
class Clipping:
    """A function of the predicted x, [batch, ...] to the same shape."""

    def __call__(self, x: Batch) -> Float[Array, "batch *dims"]:
        raise NotImplementedError


@dataclass(frozen=True)
class Clip(Clipping):
    """Each element into [low, high]."""

    low: float = -1.0
    """The smallest value that data take."""
    high: float = 1.0
    """The largest value that data take."""

    def __post_init__(self) -> None:
        convert_numbers(self)
        require("high", self.high, self.low < self.high, f"more than low, which is {self.low}")

    def __call__(self, x: Batch) -> Float[Array, "batch *dims"]:
        return jnp.clip(x, self.low, self.high)


@dataclass(frozen=True)
class DynamicThreshold(Clipping):
    """Clipped to [-s, s] and divided by s, the `quantile` of |x| in the example, but at least 1 and at most `maximum`.

    Saharia et al. 2022 (Imagen, arXiv 2205.11487), section 2.3.
    """

    quantile: float = 0.995
    """The share of an example's elements that the threshold leaves alone."""
    maximum: float | None = None
    """The largest threshold; None for any."""

    def __post_init__(self) -> None:
        convert_numbers(self)
        require("quantile", self.quantile, 0 < self.quantile <= 1, "more than 0, at most 1")
        require("maximum", self.maximum, self.maximum is None or self.maximum > 1, "None or more than 1")

    def __call__(self, x: Batch) -> Float[Array, "batch *dims"]:
        axes = tuple(range(1, x.ndim))
        quantile = jnp.quantile(jnp.abs(x), self.quantile, axis=axes, keepdims=True)
        threshold = jnp.clip(quantile, 1.0, self.maximum)
        return jnp.clip(x, -threshold, threshold) / threshold


@dataclass(frozen=True)
class NoClipping(Clipping):
    """x as it is: for data that are not images, and where the sampler must be invertible."""

    def __call__(self, x: Batch) -> Float[Array, "batch *dims"]:
        return jnp.asarray(x)


def as_clipping(clip: bool | Clipping) -> Clipping:
    """True is `Clip()`, to [-1, 1]; False is `NoClipping()`."""
    if isinstance(clip, Clipping):
        return clip
    require("clip", clip, isinstance(clip, bool), "True, False, or a Clipping such as DynamicThreshold()")
    return Clip() if clip else NoClipping()
