r"""What the network predicts: A x + B eps, for a pair (A, B) of functions of t.

    z_t    = signal_t x + noise_t eps
    output = A_t x + B_t eps

    Eps       (0, 1)                         eps                              Ho et al. 2020, equation 14
    X         (1, 0)                         x                                equation 8 with the mean written in x
    V         (-noise, signal)               v = signal eps - noise x         Salimans & Ho 2022 (arXiv 2202.00512)
    Score     (0, -1 / noise)                grad log q(z_t | x)              Song et al. 2021 (2011.13456), equation 7
    Mean      (signal_s, a noise_t)          the mean of q(z_s | z_t, x), s = t - 1    Ho et al. 2020, equation 8
    Velocity  (signal', noise')              dz_t / dt, flow matching         Lipman et al. 2022 (2210.02747)
    Edm       (noise, -sigma_data^2 signal) / (sigma_data h),  h = hypot(noise, sigma_data signal)
                                             F of Karras et al. 2022 (2206.00364), equation 8

Two equations in two unknowns: a network's output and z_t determine x and eps.  With D = signal B - noise A,

    x = (B z_t - noise output) / D,     eps = (signal output - A z_t) / D                                     `decode`

At a given z_t the squared error of the output is that of x times (D / noise)^2, `error_ratio`, so weightings of the
error of x carry over to every target.  D is 0 for Eps and Score at SNR 0: there the output says nothing of x.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.diffusion.arrays import Batch, Time, check_shape, is_known, lookup, per_example
from ddpm_jax.diffusion.forward import before, noise_between
from ddpm_jax.diffusion.process import Process, check_process
from ddpm_jax.errors import check_fields, require

__all__ = ["Edm", "Eps", "Mean", "Prediction", "Score", "Target", "V", "Velocity", "X", "convert"]

Pair = tuple[Float[Array, "..."], Float[Array, "..."]]


class Prediction(NamedTuple):
    """A prediction of the data and, equivalently, of the noise: z_t = signal_t x + noise_t eps."""

    x: Float[Array, "batch *dims"]
    eps: Float[Array, "batch *dims"]
    var_fraction: Float[Array, "batch *dims"] | None = None
    """Where the variance lies between its two ends, 0 to 1, if the network predicts it (`variance`)."""


@dataclass(frozen=True)
class Target:
    """A pair (A, B) of functions of t; subclasses give `pair`."""

    def pair(self, process: Process, t: Time) -> Pair:
        """(A, B).

        Args:
            process: the forward process.
            t: the time, one or [batch].

        Returns:
            Two float32 arrays, shaped like t.
        """
        raise NotImplementedError

    def determinant(self, process: Process, t: Time) -> Float[Array, "..."]:
        """D = signal B - noise A; arguments as in `pair`."""
        a, b = self.pair(process, t)
        return process.signal(t) * b - process.noise(t) * a

    def encode(self, process: Process, x: Batch, eps: Batch, t: Time) -> Batch:
        """What the network should output at z_t = diffuse(x, t, eps).

        Args:
            process: the forward process.
            x: the data, float32 [batch, ...].
            eps: the noise, shaped like x.
            t: [batch] or one for all; in 1..T for a chain.

        Returns:
            float32, shaped like x.
        """
        check_shape("eps", eps, "x", x)
        a, b = (per_example(part, x) for part in self.pair(process, t))
        return a * x + b * eps

    def decode(self, process: Process, output: Batch, z_t: Batch, t: Time) -> Prediction:
        """The x and eps for an output of the network; the inverse of `encode`.

        Args:
            process: the forward process.
            output: the output at z_t, shaped like z_t.
            z_t: float32 [batch, ...].
            t: [batch] or one for all; in 1..T for a chain.

        Returns:
            Prediction(x, eps, None).
        """
        check_shape("output", output, "z_t", z_t)
        signal, noise = lookup(process.signal, t, z_t), lookup(process.noise, t, z_t)
        d = self.determinant(process, t)
        a, b = (per_example(part / d, z_t) for part in self.pair(process, t))
        d = per_example(d, z_t)
        # Divided first: the x of X() and the eps of Eps() are then exactly the output.
        return Prediction(b * z_t - noise / d * output, signal / d * output - a * z_t)

    def error_ratio(self, process: Process, t: Time) -> Float[Array, "..."]:
        """|error of the output|^2 / |error of the decoded x|^2, float32, shaped like t; arguments as in `pair`."""
        return (self.determinant(process, t) / process.noise(t)) ** 2


@dataclass(frozen=True)
class Eps(Target):
    """The noise."""

    def pair(self, process: Process, t: Time) -> Pair:
        return jnp.zeros(jnp.shape(t)), jnp.ones(jnp.shape(t))


@dataclass(frozen=True)
class X(Target):
    """The data."""

    def pair(self, process: Process, t: Time) -> Pair:
        return jnp.ones(jnp.shape(t)), jnp.zeros(jnp.shape(t))


@dataclass(frozen=True)
class V(Target):
    """The direction in which z moves as (signal, noise) turns around the origin."""

    def pair(self, process: Process, t: Time) -> Pair:
        return -process.noise(t), process.signal(t)


@dataclass(frozen=True)
class Score(Target):
    """The score, the gradient of log q(z_t | x) with respect to z_t."""

    def pair(self, process: Process, t: Time) -> Pair:
        return jnp.zeros(jnp.shape(t)), -1 / process.noise(t)


@dataclass(frozen=True)
class Mean(Target):
    """The mean of q(z_{t-1} | z_t, x), in a chain; at t = 1 that is x itself.

    Sampling and the bound read the output as an x, clip it if clipping is on, and take the mean that belongs to the
    clipped x, as for every target.  The published code for this target keeps the network's output as the mean, and
    clips only the x that it reports: `clip=NoClipping()` gives that.
    """

    def pair(self, process: Process, t: Time) -> Pair:
        step = process.step(t, before(process, t))
        return step.signal_s, step.a * step.noise_t

    def determinant(self, process: Process, t: Time) -> Float[Array, "..."]:
        step = process.step(t, before(process, t))
        return -step.noise_t * step.b  # the difference of the general formula would leave few digits

    def decode(self, process: Process, output: Batch, z_t: Batch, t: Time) -> Prediction:
        x = super().decode(process, output, z_t, t).x
        return Prediction(x, noise_between(process, z_t, x, t))  # the general formula would leave few digits of eps


@dataclass(frozen=True)
class Velocity(Target):
    """dz_t / dt along the line of fixed x and eps: eps - x for `RectifiedFlow`."""

    def pair(self, process: Process, t: Time) -> Pair:
        return process.rates(t)


@dataclass(frozen=True)
class Edm(Target):
    """EDM's F: x and eps mixed so that its variance is 1 at every t, for data of this standard deviation."""

    sigma_data: float = 0.5
    """The standard deviation of the data."""

    def __post_init__(self) -> None:
        check_fields(self)
        require("sigma_data", self.sigma_data, 0 < self.sigma_data < float("inf"), "more than 0")

    def pair(self, process: Process, t: Time) -> Pair:
        signal, noise = process.signal(t), process.noise(t)
        h = jnp.hypot(noise, self.sigma_data * signal)
        return noise / (self.sigma_data * h), -self.sigma_data * signal / h


def check_target(target: Target, process: Process) -> None:
    """Raise ValueError if x does not follow from the output at the noisy end, with the targets from which it does."""
    if not is_known(*jax.tree.leaves(process)):
        return
    with jax.ensure_compile_time_eval():  # numbers rather than tracers, also inside a jitted function
        if float(process.signal(process.last)) > 0 or float(target.determinant(process, process.last)) != 0:
            return
        working = [one for one in (X(), V(), Edm(), Velocity()) if float(one.determinant(process, process.last)) != 0]
        names = ", ".join(str(one) for one in working)
        raise ValueError(
            f"target is {target}, but z_t at t = {process.last} holds nothing of x; expected one of {names}"
        )


def convert(process: Process, output: Batch, z_t: Batch, t: Time, source: Target, target: Target) -> Batch:
    """The output of a network trained for `source`, as a network trained for `target` would give it.

    Args:
        process: the forward process.
        output: the network's output at z_t, float32 [batch, ...].
        z_t: the latent at time t, shaped like output.
        t: [batch] or one for all; in 1..T for a chain.
        source: the target of the network.
        target: the target to convert to.

    Returns:
        The converted output, float32 [batch, ...].

    Raises:
        ValueError: output is not shaped like z_t, a target is not a Target, or t is out of range.
    """
    check_process(process)
    require("source", source, isinstance(source, Target), "a Target, such as Eps()")
    require("target", target, isinstance(target, Target), "a Target, such as V()")
    process.check_time(t)
    x, eps, _ = source.decode(process, output, z_t, t)
    return target.encode(process, x, eps, t)
