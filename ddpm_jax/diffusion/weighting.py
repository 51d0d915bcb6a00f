"""How much each timestep counts in the loss.

A weighting is a frozen dataclass called with (process, t); it returns one weight per timestep, which
multiplies the squared error of the network's output, or, where `of_x` is set, of the x that the output
stands for, so that it means the same whatever the network predicts.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.devices.axes import take
from ddpm_jax.diffusion.arrays import Time
from ddpm_jax.diffusion.process import Process, check_process, require_chain
from ddpm_jax.diffusion.targets import Target
from ddpm_jax.diffusion.variance import FixedSmall, Variance
from ddpm_jax.errors import check_fields, require

__all__ = ["P2", "MinSnr", "Simple", "Vlb", "Weighting", "Weights", "weights"]


@dataclass(frozen=True)
class Weighting:
    """A function of (process, t); subclasses give `__call__`."""

    of_x: ClassVar[bool] = False

    def __call__(self, process: Process, t: Time) -> Float[Array, "..."]:
        """The weight of each timestep, shaped like t."""
        raise NotImplementedError


@dataclass(frozen=True)
class Simple(Weighting):
    """1 for every timestep: L_simple (Ho et al. 2020, equation 14)."""

    def __call__(self, process: Process, t: Time) -> Float[Array, "..."]:
        return jnp.ones(jnp.shape(t))


@dataclass(frozen=True)
class MinSnr(Weighting):
    """min(snr_t, gamma) on the error of x (Hang et al. 2023, arXiv 2303.09556, section 3.4)."""

    gamma: float = 5.0
    """Where the signal-to-noise ratio is cut; the paper uses 5."""

    of_x: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)
        require("gamma", self.gamma, self.gamma > 0, "more than 0")

    def __call__(self, process: Process, t: Time) -> Float[Array, "..."]:
        return jnp.minimum(process.snr(t), self.gamma)


@dataclass(frozen=True)
class Vlb(Weighting):
    """b_t^2 / (2 var_t) on the error of x: the t-th term of the bound in nats (Ho et al. 2020, equation 12).

    Exactly KL(q(z_{t-1} | z_t, x) || p(z_{t-1} | z_t)) per element for t >= 2 with FixedSmall, where it is also
    (snr_{t-1} - snr_t) / 2 (Kingma et al. 2021, arXiv 2107.00630, equation 13); up to what does not depend on the
    network with FixedLarge; at t = 1, that of the density p(x | z_1).  For a continuous process, -SNR'(t) / 2, the
    limit of infinitely many steps (equation 17), whatever the variance.
    """

    variance: Variance = FixedSmall()
    """The model's variance, FixedSmall or FixedLarge: the experiment's own."""

    of_x: ClassVar[bool] = True

    def __post_init__(self) -> None:
        fixed = isinstance(self.variance, Variance) and not self.variance.learned
        require("variance", self.variance, fixed, "FixedSmall() or FixedLarge()")

    def __call__(self, process: Process, t: Time) -> Float[Array, "..."]:
        if not process.is_chain:
            return 0.5 * process.snr(t) * process.log_snr_rate(t)
        step = process.step(t, jnp.asarray(t) - 1)
        return step.b**2 / (2 * self.variance(step))


@dataclass(frozen=True)
class P2(Weighting):
    """snr_t / (k + snr_t)^gamma on the error of x (Choi et al. 2022, arXiv 2204.00227, equation 8).

    That is 1 / (k + snr_t)^gamma on the error of eps: less weight where only imperceptible detail is learned.
    """

    gamma: float = 1.0
    """How much less; 0 is the simple loss of a network that predicts eps.  The paper uses 0.5 and 1."""
    k: float = 1.0
    """Keeps the weight finite as snr falls to 0; the paper uses 1."""

    of_x: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)
        require("gamma", self.gamma, 0 <= self.gamma < float("inf"), "0 or more")
        require("k", self.k, 0 < self.k < float("inf"), "more than 0")

    def __call__(self, process: Process, t: Time) -> Float[Array, "..."]:
        snr = process.snr(t)
        return snr / (self.k + snr) ** self.gamma


@dataclass(frozen=True)
class Weights(Weighting):
    """Any weights on the error of the output: an array, list or tuple for t = 1..T."""

    values: Any
    """The weights of t = 1..T, each finite and 0 or more; kept as a tuple of floats."""

    def __post_init__(self) -> None:
        try:
            values = np.asarray(self.values, np.float64)
        except (TypeError, ValueError):
            values = np.array(np.nan)
        holds = values.ndim == 1 and values.size > 0 and bool(np.all(np.isfinite(values) & (values >= 0)))
        require("values", self.values, holds, "a list of T numbers, each finite and 0 or more")
        object.__setattr__(self, "values", tuple(values.tolist()))

    def __call__(self, process: Process, t: Time) -> Float[Array, "..."]:
        num_steps = require_chain(process, "Weights")
        if len(self.values) != num_steps:
            raise ValueError(f"there are {len(self.values)} weights; the process has {num_steps} steps")
        return take(jnp.asarray((0.0, *self.values), jnp.float32), t)


def weights(weighting: Weighting, process: Process, t: Time, target: Target) -> Float[Array, "..."]:
    """The weights on the squared error of a network's output.

    Args:
        weighting: the weighting.
        process: the forward process.
        t: the time, one or [batch]; in 1..T for a chain.
        target: what the network predicts.

    Returns:
        float32, shaped like t.
    """
    check_process(process)
    weight = weighting(process, t)
    return weight / target.error_ratio(process, t) if weighting.of_x else weight
