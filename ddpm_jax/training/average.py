"""Averages of the parameters over the training, which sampling uses: exponential, and by power functions.

theta_k are the parameters after step k = 1, 2, ..., t, and every average is a weighted sum of them.

*Exponential.*  e_k = d e_{k-1} + (1 - d) theta_k from e_0 = theta_0: the last 1 / (1 - d) steps or so count, however
long the training has been.  After t steps d^t of the average is still theta_0, which is untrained: 90% after 1,000
steps with d = 0.9999.  So the decay starts small and grows, d_k = min(d, (1 + k) / (10 + k)), as in TensorFlow's
ExponentialMovingAverage: until d is reached, the average covers about the last tenth of the training, and since

    prod_{k=1}^m (1 + k) / (10 + k) = 10! (m + 1)! / (m + 10)! = 10 / binomial(m + 10, 9),

theta_0 makes up 6e-5 of it after 10 steps.  d_k depends on k alone, so a training that is continued is the same
training; from step (10 d - 1) / (1 - d) on, 90,000 for d = 0.9999, the decay is d.

*By a power of time* (Karras et al. 2024, arXiv 2312.02696, section 3.1).  Steps count by how far into the training
they are, so that a width says the same of a short and of a long one.  Let theta(tau) = theta_k for tau in (k - 1, k];
then

    e_t = integral_0^t p_t(tau) theta(tau) dtau,    p_t(tau) = (gamma + 1) tau^gamma / t^(gamma + 1)

is an average, for the profile p_t >= 0 has mass 1.  No sum over old parameters is needed:

    e_k = beta_k e_{k-1} + (1 - beta_k) theta_k,    beta_k = (1 - 1/k)^(gamma + 1) = ((k - 1) / k)^(gamma + 1)

is that integral and no approximation of it.  For beta_1 = 0 forgets e_0, and since the product of beta_{k+1} ... beta_t
telescopes to (k / t)^(gamma + 1), what is left of theta_k at step t is

    (1 - beta_k) (k / t)^(gamma + 1) = (k^(gamma + 1) - (k - 1)^(gamma + 1)) / t^(gamma + 1),

which is p_t's integral from k - 1 to k.

The *width* of a profile is its standard deviation as a share of t.  With E[tau^n] = t^n (gamma + 1) / (gamma + n + 1),

    width^2 = (gamma + 1) / (gamma + 3) - ((gamma + 1) / (gamma + 2))^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)),

which falls from 1/12 at gamma = 0, the plain mean, towards 0 as gamma grows: each width up to 1 / sqrt(12) = 0.2887
belongs to one gamma >= 0.  Averages of any width can be computed afterwards from the snapshots that `PowerEma` keeps
(`ddpm_jax.training.posthoc`).
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddpm_jax.errors import check_fields, require, require_int

__all__ = ["Averaging", "Ema", "PowerEma", "gamma_of", "require_width", "width_of"]

NARROWEST, WIDEST = 1e-4, 1 / math.sqrt(12)
# Steps whose shares are computed at once.
BLOCK = 4096


def width_of(gamma: float) -> float:
    """The relative standard deviation of a profile whose density grows as tau^gamma."""
    return math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))


def gamma_of(width: float) -> float:
    """The gamma >= 0 whose profile has this width, the inverse of `width_of`.

    It is the largest root of (gamma + 2)^2 (gamma + 3) - (gamma + 1) / width^2; the others are below -0.38.
    Raises ValueError if there is none, or if it is absurdly large.
    """
    require_width("width", width)
    a = 1 / width**2
    return max(0.0, float(np.roots([1.0, 7.0, 16 - a, 12 - a]).real.max()))


def require_width(field: str, width: float) -> None:
    """Raise ValueError unless a profile with gamma >= 0 has this width.

    Args:
        field: the name of the field.
        width: the width.
    """
    holds = bool(NARROWEST <= width <= WIDEST)
    require(field, width, holds, f"{NARROWEST:.4f} to {math.floor(1e4 * WIDEST) / 1e4}")


@dataclass(frozen=True)
class Averaging:
    """Which averages of the parameters a training keeps; subclasses give `profiles` and `shares`.

    A profile is a number that names an average (a decay, a width); samples use that of the first, unless asked
    otherwise.
    """

    @property
    def profiles(self) -> tuple[float, ...]:
        """What names each of the averages, the first being the one for samples."""
        raise NotImplementedError

    def shares(self, step: Int[Array, ""]) -> tuple[Float[Array, ""], ...]:
        """What share of each average the parameters of step number `step` (counted from 1) become."""
        raise NotImplementedError

    def initial_shares(self, step: int) -> tuple[float, ...]:
        """How much of each average after `step` steps is the parameters from before the first step, from 0 to 1.

        It is the product over k = 1, ..., step of 1 - shares(k); where that falls below 1e-6 it may be returned as 0.
        """
        left = np.ones(len(self.profiles))
        for first in range(1, step + 1, BLOCK):
            steps = jnp.arange(first, min(first + BLOCK, step + 1))
            shares = np.array(jax.vmap(self.shares)(steps), np.float64).reshape(len(left), -1)
            left = left * np.prod(1 - shares, axis=1)
            if left.max(initial=0) < 1e-6:
                break
        return tuple(np.where(left < 1e-6, 0.0, left).tolist())

    def snapshot_due(self, step: int, last: int) -> bool:
        """Whether the averages after this step, of a training of `last` steps, are kept for good.

        Args:
            step: the step that has been taken.
            last: the last step of the training.
        """
        return False

    def update(self, averages: tuple[Any, ...], params: Any, step: Int[Array, ""]) -> tuple[Any, ...]:
        """The averages after a step.

        Args:
            averages: the averages before it, one tree for each profile.
            params: the new parameters.
            step: the number of the step, from 1.
        """

        def move(average: Any, share: Float[Array, ""]) -> Any:
            return jax.tree.map(lambda old, new: old + share * (new - old), average, params)

        return tuple(map(move, averages, self.shares(step)))


@dataclass(frozen=True)
class Ema(Averaging):
    """Exponential moving averages."""

    decay: float = 0.9999
    """The average keeps this share of itself in each step."""
    warmup: bool = True
    """Whether the decay starts small and grows, min(decay, (1 + step) / (10 + step)), so that the average soon forgets
    the untrained parameters; False for published recipes without it."""
    others: tuple[float, ...] = ()
    """Further decays to keep an average of, each of which takes the memory of the parameters once more. With warm-up
    two averages are equal until the decay of one has stopped growing."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name, decay in (("decay", self.decay), *(("others", decay) for decay in self.others)):
            require(name, decay, 0 <= decay < 1, "0 or more, less than 1")
        _require_distinct("decay", self.decay, self.others)

    @property
    def profiles(self) -> tuple[float, ...]:
        return (self.decay, *self.others)

    def shares(self, step: Int[Array, ""]) -> tuple[Float[Array, ""], ...]:
        decays = [jnp.float32(decay) for decay in self.profiles]
        if self.warmup:
            decays = [jnp.minimum(decay, (1.0 + step) / (10.0 + step)) for decay in decays]
        return tuple(1.0 - decay for decay in decays)

    def initial_shares(self, step: int) -> tuple[float, ...]:
        return tuple(self._initial_share(decay, step) for decay in self.profiles)

    def _initial_share(self, decay: float, step: int) -> float:
        """The product of the decays of steps 1, ..., `step`, in closed form."""
        if not self.warmup:
            return float(decay) ** step
        growing = min(step, max(0, math.ceil((10 * decay - 1) / (1 - decay)) - 1))  # the steps with a smaller decay
        return 10 / math.comb(growing + 10, 9) * float(decay) ** (step - growing)


@dataclass(frozen=True)
class PowerEma(Averaging):
    """Averages by powers of time (Karras et al. 2024), kept in snapshots, from which any width can be computed."""

    width: float = 0.10
    """The standard deviation of the average's profile, as a share of the training so far; at most 0.2886."""
    others: tuple[float, ...] = (0.05,)
    """Further widths to keep an average of; with two widths in each snapshot any other is fitted well."""
    snapshot_every: int = 20_000
    """Steps between snapshots, which stay for good, as does one of the last step. Forty of two widths fit every width
    from 0.03 to 0.2 within 1%; each takes the disk space of the parameters times the number of widths."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name, width in (("width", self.width), *(("others", width) for width in self.others)):
            require_width(name, width)
        _require_distinct("width", self.width, self.others)
        require_int("snapshot_every", self.snapshot_every, 1)

    @property
    def profiles(self) -> tuple[float, ...]:
        return (self.width, *self.others)

    def shares(self, step: Int[Array, ""]) -> tuple[Float[Array, ""], ...]:
        """1 - beta_k; by log1p and expm1, as few digits of a float32 beta_k differ from those of 1 when k is large."""
        return tuple(-jnp.expm1((gamma_of(width) + 1.0) * jnp.log1p(-1.0 / step)) for width in self.profiles)

    def initial_shares(self, step: int) -> tuple[float, ...]:
        return (0.0 if step > 0 else 1.0,) * len(self.profiles)  # beta_1 = 0

    def snapshot_due(self, step: int, last: int) -> bool:
        return step % self.snapshot_every == 0 or step == last


def _require_distinct(field: str, first: float, others: tuple[float, ...]) -> None:
    distinct = len({first, *others}) == 1 + len(others)
    require("others", others, distinct, f"numbers that differ from {field}, {first}, and from one another")
