"""How a predicted x is clipped: not at all, to a range, or to a quantile of its own elements.

At high noise a network may predict x far outside [-1, 1], and sampling diverges.  The published samplers of images clip
(Ho et al. 2020, the code); strong guidance uses the dynamic threshold.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.diffusion.arrays import Batch
from ddpm_jax.errors import check_fields, require

__all__ = ["Clip", "Clipping", "DynamicThreshold", "NoClipping"]


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
        check_fields(self)
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
        check_fields(self)
        require("quantile", self.quantile, 0 < self.quantile <= 1, "more than 0, at most 1")
        require("maximum", self.maximum, self.maximum is None or self.maximum > 1, "None or more than 1")

    def __call__(self, x: Batch) -> Float[Array, "batch *dims"]:
        axes = tuple(range(1, x.ndim))
        quantile = jnp.quantile(jnp.abs(x), self.quantile, axis=axes, keepdims=True)
        threshold = jnp.clip(quantile, 1.0, self.maximum)
        return jnp.clip(x, -threshold, threshold) / threshold


@dataclass(frozen=True)
class NoClipping(Clipping):
    """No clipping: for data outside [-1, 1], and for samplers that must be invertible."""

    def __call__(self, x: Batch) -> Float[Array, "batch *dims"]:
        return jnp.asarray(x)
