"""The probability of one of evenly spaced levels, such as a pixel's, under a normal distribution.

A level's bin ends halfway to the neighbouring levels, at infinity for the first and the last level (Ho et al. 2020,
equation 13).
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float

from ddpm_jax.diffusion.arrays import Batch, Whole
from ddpm_jax.diffusion.gaussian import Normal
from ddpm_jax.errors import require_int

PIXEL_LEVELS = 256


def discretised_log_prob(normal: Normal, x: Batch, bins: Whole = PIXEL_LEVELS) -> Float[Array, "batch *dims"]:
    """The log of the normal's mass in the bin of each element of x, in nats; the masses of all bins sum to 1.

    It is accurate in the tails, for masses far below the smallest float32.

    Args:
        normal: the distribution, whose mean is shaped like x.
        x: levels, float32 [batch, ...]: each one of `bins` evenly spaced numbers from -1 to 1.
        bins: the number of levels, at least 2.

    Returns:
        float32 [batch, ...].

    Raises:
        ValueError: bins is not a whole number of at least 2.
    """
    half = 1.0 / (require_int("bins", bins, 2) - 1)
    x = jnp.asarray(x)
    low = jnp.where(x <= -1 + half, -jnp.inf, (x - half - normal.mean) / normal.std)
    high = jnp.where(x >= 1 - half, jnp.inf, (x + half - normal.mean) / normal.std)
    # The same mass, mirrored into the left half, where log Phi has all its digits.
    mirror = low + high > 0
    low, high = jnp.where(mirror, -high, low), jnp.where(mirror, -low, high)
    return _log_difference(_log_cdf(high), _log_cdf(low))


@jax.custom_jvp
def _log_cdf(z: Array) -> Array:
    """log Phi(z), with a slope that keeps its digits however far z is in the left tail, and is 0 at -inf."""
    return log_ndtr(z)


@_log_cdf.defjvp
def _log_cdf_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """The slope phi / Phi: phi(z) / Phi(z) = -z / (1 - 1/z^2 + 3/z^4 - ...) in the tail, where both are too small."""
    (z,), (tangent,) = primals, tangents
    value, tail = log_ndtr(z), (z < -10) & jnp.isfinite(z)
    near, far = jnp.maximum(z, -10.0), jnp.where(tail, z, -10.0)
    u = 1 / far**2
    series = 1 - u * (1 - 3 * u * (1 - 5 * u * (1 - 7 * u * (1 - 9 * u))))
    ratio = jnp.exp(-0.5 * near**2 - log_ndtr(near) - 0.5 * math.log(2 * math.pi))
    slope = jnp.where(jnp.isneginf(z), 0.0, jnp.where(tail, -far / series, ratio))
    return value, slope * tangent


def _log_difference(large: Array, small: Array) -> Array:
    """log(exp(large) - exp(small)), small < large."""
    # Equal if the bin is too narrow for float32: then the mass is below rounding, not 0.
    gap = jnp.minimum(small - large, -jnp.finfo(jnp.float32).tiny)
    return large + jnp.where(gap > -math.log(2), jnp.log(-jnp.expm1(gap)), jnp.log1p(-jnp.exp(gap)))
