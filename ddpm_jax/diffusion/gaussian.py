"""The normal distribution with independent elements, N(mean, std^2 I).

Every distribution of the forward process and of the model is one of these.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.diffusion.arrays import Key
from ddpm_jax.errors import require_key

__all__ = ["Normal"]


@flax.struct.dataclass
class Normal:
    """N(mean, std^2), independently for each element.

    mean: [batch, ...] float32.  std: broadcasts against mean, usually [batch, 1, ..., 1].  If std is exactly 0, the
    distribution is a point, and only `sample` is finite.
    """

    mean: Float[Array, "*shape"]
    std: Float[Array, "*broadcastable"]

    def sample(self, key: Key) -> Float[Array, "*shape"]:
        """mean + std * eps with eps ~ N(0, I) drawn from `key`."""
        require_key(key)
        return self.mean + self.std * jax.random.normal(key, self.mean.shape, self.mean.dtype)

    def log_prob(self, y: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """log N(y; mean, std^2) in nats, element by element: sum it for the density of a vector."""
        residual = (y - self.mean) / self.std
        return -0.5 * (residual**2 + math.log(2 * math.pi)) - jnp.log(self.std)

    def kl(self, other: "Normal") -> Float[Array, "*shape"]:
        """KL(self || other) in nats, element by element; accurate in float32 even if the two are close."""
        excess = (self.std - other.std) / other.std
        distance = (self.mean - other.mean) / other.std
        return 0.5 * (excess * (excess + 2.0) + distance**2) - jnp.log1p(excess)
