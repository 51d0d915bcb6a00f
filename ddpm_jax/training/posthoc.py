"""An average of a width that no training kept, from snapshots of widths that it did keep.

Karras et al. 2024 (arXiv 2312.02696, section 3.2 and appendix C).  A snapshot holds the average of the parameters with
some profile p_i, a power function of time up to the snapshot's step (`ddpm_jax.training.average`).  An average is
linear in its profile, so sum_i c_i (average i) has the profile sum_i c_i p_i, and the average wanted, of profile q,
is near where that sum is near q.  The c_i minimise

    || sum_i c_i p_i - q ||^2 = integral_0^infinity (sum_i c_i p_i(tau) - q(tau))^2 dtau    where sum_i c_i = 1,

a small problem of linear least squares that never sees the parameters.  All profiles have mass 1, so the constraint
says that the sum has too: what does not change in training comes back exactly.

The inner products are closed forms.  For p(tau) = (g + 1) tau^g / a^(g+1) on [0, a] and q(tau) =
(h + 1) tau^h / b^(h+1) on [0, b] with a <= b, their product is a power of tau on [0, a], so

    <p, q> = (g + 1) (h + 1) / (a^(g+1) b^(h+1)) * a^(g+h+1) / (g + h + 1)
           = (g + 1) (h + 1) / (g + h + 1) * (a / b)^h / b.

Where p = q this is (g + 1)^2 / ((2g + 1) a), and so the cosine of the angle between the two is

    <p, q> / (||p|| ||q||) = sqrt((2g + 1) (2h + 1)) / (g + h + 1) * (a / b)^(h + 1/2),

which neither overflows nor depends on the unit of time.  Steps are whole numbers and each step's weight is its
profile's integral over a unit of time: by Cauchy and Schwarz the weights are at least as near as the profiles.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ddpm_jax.errors import require
from ddpm_jax.training.average import gamma_of

Vector = Float[np.ndarray, " n"]

# Singular values below this share of the largest are noise: float64 sums of cosines have errors near 1e-15.
RCOND = 1e-12


def norms(gamma: Vector, step: Vector) -> Vector:
    """The root of each profile's integral of its square."""
    return (gamma + 1) / np.sqrt((2 * gamma + 1) * step)


def cosines(
    gamma: Vector, step: Vector, other_gamma: Float[np.ndarray, " m"], other_step: Float[np.ndarray, " m"]
) -> Float[np.ndarray, "n m"]:
    """The cosines between profiles in function space, 1 where two are the same."""
    g, a, h, b = gamma[:, None], step[:, None], other_gamma, other_step
    later = np.where(a <= b, h, g)
    ratio = np.minimum(a, b) / np.maximum(a, b)
    return np.sqrt((2 * g + 1) * (2 * h + 1)) / (g + h + 1) * ratio ** (later + 0.5)


def coefficients(widths: Sequence[float], steps: Sequence[int], width: float, step: int) -> Vector:
    """The c_i, of sum 1, with which sum_i c_i (average of widths[i] at steps[i]) is nearest to `width`'s at `step`.

    Raises ValueError if there are no snapshots, or a width or step is out of range.
    """
    gram, target, scale = _problem(widths, steps, width, step)
    # Stationary where gram z + multiplier * scale = target and scale . z = 1; c = scale * z, element by element.
    n = len(scale)
    matrix = np.block([[gram, scale[:, None]], [scale[None], np.zeros((1, 1))]])
    z = np.linalg.lstsq(matrix, np.append(target, 1.0), rcond=RCOND)[0][:n]
    return scale * z / np.sum(scale * z)


def fit_error(c: Vector, widths: Sequence[float], steps: Sequence[int], width: float, step: int) -> float:
    """|| sum_i c_i p_i - q || / ||q||: the distance of the combination's profile from the one wanted; 0 if they are
    equal."""
    gram, target, scale = _problem(widths, steps, width, step)
    z = c / scale
    return float(np.sqrt(max(0.0, z @ gram @ z - 2 * z @ target + 1)))


def _problem(
    widths: Sequence[float], steps: Sequence[int], width: float, step: int
) -> tuple[Float[np.ndarray, "n n"], Vector, Vector]:
    """The problem for profiles of norm 1: their cosines, those with q, and ||q|| / ||p_i||: c_i = scale_i z_i."""
    require("steps", tuple(steps), len(steps) == len(widths) > 0, "a step for each width, one or more")
    require("steps", tuple(steps), min(steps) >= 1, "1 or more each")
    require("step", step, step >= 1, "1 or more")
    gamma, t = np.array([gamma_of(value) for value in widths]), np.array(steps, np.float64)
    h, b = np.array([gamma_of(width)]), np.array([step], np.float64)
    return cosines(gamma, t, gamma, t), cosines(gamma, t, h, b)[:, 0], norms(h, b) / norms(gamma, t)
