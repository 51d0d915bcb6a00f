"""What the network predicts: reparameterizations of one unknown, as given z_t each determines the others.

    z_t = signal_t x + noise_t eps

    Eps    eps                                         Ho et al. 2020, equation 14
    X      x                                           equation 8 with the mean written in x
    V      v = signal_t eps - noise_t x                Salimans & Ho 2022 (arXiv 2202.00512), section 4
    Mean   the mean of q(z_{t-1} | z_t, x)             Ho et al. 2020, equation 8
    Score  grad log q(z_t | x) = -eps / noise_t        Song et al. 2021 (2011.13456), equation 7

A target is a pair of pure functions: `encode` says what the network is asked for, `decode` reads its
answer as a pair (x, eps).  They are inverse to each other.  t in 1..T throughout.

At a given z_t each target is affine in x, so its squared error is that of x times a factor that depends
on t alone, `error_ratio`; weightings of the error of x are carried over to any target by it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.devices.axes import take
from ddpm_jax.diffusion.arrays import Batch, Timesteps, check_shape, check_timesteps, lookup
from ddpm_jax.diffusion.forward import diffuse, noise_between, posterior_weights
from ddpm_jax.diffusion.process import Process, check_process
from ddpm_jax.errors import require

__all__ = ["Eps", "Mean", "Prediction", "Score", "Target", "V", "X", "convert"]


class Prediction(NamedTuple):
    """A prediction of the data and, equivalently, of the noise: z_t = signal_t x + noise_t eps."""

    x: Float[Array, "batch *dims"]
    eps: Float[Array, "batch *dims"]
    var_fraction: Float[Array, "batch *dims"] | None = None
    """Where the variance lies between its two ends, 0 to 1, if the network predicts it (`variance`)."""


@dataclass(frozen=True)
class Target:
    """A pair of functions between (x, eps) and what the network outputs, all [batch, ...]."""

    def encode(self, process: Process, x: Batch, eps: Batch, t: Timesteps) -> Batch:
        """What the network should output at z_t = diffuse(x, t, eps).

        Args:
            process: the forward process.
            x: the data, float32 [batch, ...].
            eps: the noise, shaped like x.
            t: int32, [batch] or one for all, in 1..T.

        Returns:
            float32, shaped like x.
        """
        raise NotImplementedError

    def decode(self, process: Process, output: Batch, z_t: Batch, t: Timesteps) -> Prediction:
        """The x and eps for an output of the network; the inverse of `encode`.

        Args:
            process: the forward process.
            output: the output at z_t, shaped like z_t.
            z_t: float32 [batch, ...].
            t: int32, [batch] or one for all, in 1..T.

        Returns:
            Prediction(x, eps, None).
        """
        raise NotImplementedError

    def error_ratio(self, process: Process, t: Timesteps) -> Float[Array, "..."]:
        """|error of the output|^2 / |error of the decoded x|^2.

        Args:
            process: the forward process.
            t: int32, in 1..T.

        Returns:
            float32, shaped like t.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Eps(Target):
    """The noise."""

    def encode(self, process: Process, x: Batch, eps: Batch, t: Timesteps) -> Batch:
        return eps

    def decode(self, process: Process, output: Batch, z_t: Batch, t: Timesteps) -> Prediction:
        check_shape("output", output, "z_t", z_t)
        x = (jnp.asarray(z_t) - lookup(process.noise, t, z_t) * output) / lookup(process.signal, t, z_t)
        return Prediction(x, jnp.asarray(output))

    def error_ratio(self, process: Process, t: Timesteps) -> Float[Array, "..."]:
        return take(process.snr, t)


@dataclass(frozen=True)
class X(Target):
    """The data."""

    def encode(self, process: Process, x: Batch, eps: Batch, t: Timesteps) -> Batch:
        return x

    def decode(self, process: Process, output: Batch, z_t: Batch, t: Timesteps) -> Prediction:
        return Prediction(jnp.asarray(output), noise_between(process, z_t, output, t))

    def error_ratio(self, process: Process, t: Timesteps) -> Float[Array, "..."]:
        return jnp.ones_like(take(process.snr, t))


@dataclass(frozen=True)
class V(Target):
    """The velocity: the direction in which z moves as (signal, noise) turns along the unit circle."""

    def encode(self, process: Process, x: Batch, eps: Batch, t: Timesteps) -> Batch:
        check_shape("eps", eps, "x", x)
        return lookup(process.signal, t, x) * eps - lookup(process.noise, t, x) * x

    def decode(self, process: Process, output: Batch, z_t: Batch, t: Timesteps) -> Prediction:
        check_shape("output", output, "z_t", z_t)
        signal, noise = lookup(process.signal, t, z_t), lookup(process.noise, t, z_t)
        return Prediction(signal * z_t - noise * output, noise * z_t + signal * output)

    def error_ratio(self, process: Process, t: Timesteps) -> Float[Array, "..."]:
        return 1 / take(process.noise_var, t)


@dataclass(frozen=True)
class Mean(Target):
    """The mean of q(z_{t-1} | z_t, x); at t = 1 that is x itself.

    Sampling and the bound read the output as an x, clip it if clipping is on, and take the mean that belongs to the
    clipped x, as for every target.  The published code for this target keeps the network's output as the mean, and
    clips only the x that it reports: `clip=NoClipping()` gives that.
    """

    def encode(self, process: Process, x: Batch, eps: Batch, t: Timesteps) -> Batch:
        a, b, _ = posterior_weights(process, t, None, x)
        return a * diffuse(process, x, t, eps) + b * x

    def decode(self, process: Process, output: Batch, z_t: Batch, t: Timesteps) -> Prediction:
        a, b, _ = posterior_weights(process, t, None, z_t)
        x = (jnp.asarray(output) - a * z_t) / b
        return Prediction(x, noise_between(process, z_t, x, t))

    def error_ratio(self, process: Process, t: Timesteps) -> Float[Array, "..."]:
        _, b, _ = posterior_weights(process, t, None, take(process.snr, t))
        return b**2


@dataclass(frozen=True)
class Score(Target):
    """The score, the gradient of log q(z_t | x) with respect to z_t."""

    def encode(self, process: Process, x: Batch, eps: Batch, t: Timesteps) -> Batch:
        return -eps / lookup(process.noise, t, x)

    def decode(self, process: Process, output: Batch, z_t: Batch, t: Timesteps) -> Prediction:
        return Eps().decode(process, -lookup(process.noise, t, z_t) * output, z_t, t)

    def error_ratio(self, process: Process, t: Timesteps) -> Float[Array, "..."]:
        return take(process.snr, t) / take(process.noise_var, t)


def convert(process: Process, output: Batch, z_t: Batch, t: Timesteps, source: Target, target: Target) -> Batch:
    """The output of a network trained for `source`, as a network trained for `target` would give it.

    Args:
        process: the forward process.
        output: the network's output at z_t, float32 [batch, ...].
        z_t: the latent at time t, shaped like output.
        t: int32, [batch] or one for all, in 1..T.
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
    check_shape("output", output, "z_t", z_t)
    check_timesteps(t, 1, process.num_steps)
    x, eps, _ = source.decode(process, output, z_t, t)
    return target.encode(process, x, eps, t)
