r"""The exact likelihood of the probability flow: the deterministic ODE whose marginals are those of the chain.

    dz/dt = signal'(t) x(z, t) + noise'(t) eps(z, t)                   x, eps predicted at z; the flow of z_t
    log p(z_0) = log N(z_T; 0, S_T I) + int_0^T div(dz/dt) dt          along it, from z_0 to z_T

(Song et al. 2021, arXiv 2011.13456, equations 13 and 39, here for any process: between the timesteps of a chain
signal and noise follow the smooth curves through their tables.)  The divergence is the trace of a Jacobian: exactly,
one product with it for each element of x, or by Hutchinson's estimator, v . (Jacobian v) with E[v v^T] = I, at the cost
of one. The network is evaluated in full float32 (`ddpm_jax.devices.precision`).

A network has not seen earlier times than the clean end, t = 1 of a chain, so by default the flow ends there, and
x = z_1 / signal_1.  What is measured is the model's density of data with noise of standard deviation
noise_1 / signal_1, which is 0.010 for the linear and 0.006 for the cosine process of 1000 steps, and 0.0013 where log
SNR is 13.3.  An 8-bit level is 0.008 wide.
Discrete data are given uniform noise of a level's width first; -log2 of the density at x + noise, minus log2 of
the levels' number per unit, bounds the bits of the levels from above (Theis et al. 2016, arXiv 1511.01844).
"""

import math
from functools import partial
from typing import Any, Literal, cast

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from ddpm_jax.devices.axes import rows_of, with_automatic_axes
from ddpm_jax.devices.float64 import in_float64
from ddpm_jax.devices.precision import quoted
from ddpm_jax.diffusion.arrays import (
    Batch,
    Key,
    PerExample,
    Whole,
    as_data,
    example_keys,
    is_known,
    lookup,
)
from ddpm_jax.diffusion.denoiser import Denoiser, check_arguments
from ddpm_jax.diffusion.discretised import PIXEL_LEVELS
from ddpm_jax.diffusion.gaussian import Normal
from ddpm_jax.diffusion.process import Process
from ddpm_jax.errors import require, require_int, require_number

__all__ = ["Likelihood", "log_likelihood", "velocity"]


@flax.struct.dataclass
class Likelihood:
    """The likelihood of each example of a batch."""

    log_prob: PerExample
    """log p(x), a density, in nats; of x with its noise if it was dequantised."""
    bits_per_dim: PerExample
    """Bits for each element: of the level if x was dequantised, of the density if not."""
    latent: Float[Array, "batch *dims"]
    """z_T, the noise that the flow carries to x."""
    evaluations: Int[Array, ""]
    """The number of network evaluations, products with its Jacobian included."""


def velocity(model: Denoiser, z: Batch, t: Float[Array, ""]) -> Float[Array, "batch *dims"]:
    """dz/dt of the probability flow.

    Args:
        model: the denoiser.
        z: the latent, float32 [batch, ...].
        t: a real time, for all examples.

    Returns:
        float32, shaped like z.
    """
    prediction = model.denoise(z, jnp.full(z.shape[:1], t))
    signal_rate, noise_rate = model.process.rates(t)
    return signal_rate * prediction.x + noise_rate * prediction.eps


@quoted
def log_likelihood(
    key: Key,
    model: Denoiser,
    x: Batch,
    *,
    trace: Literal["hutchinson", "exact"] = "hutchinson",
    bins: Whole | None = PIXEL_LEVELS,
    end: float | None = None,
    tolerance: float = 1e-5,
    max_steps: Whole = 4096,
    first_index: Whole = 0,
) -> Likelihood:
    """The likelihood of a batch, by the probability flow from x to z_T.

    The flow is integrated by diffrax (Dormand-Prince 5(4), adaptive steps).

    Args:
        key: the key; the noise and the probe of an example are a function of (key, its number).
        model: the denoiser; its clipping is ignored, and predict is called with real t, [batch] float32.
        x: the data, float32 [batch, ...].
        trace: Hutchinson's estimate, which is unbiased, or the exact trace, whose cost grows with the elements of x.
        bins: the number of levels of the data, which are dequantised uniformly; None for continuous data.
        end: the log SNR at which the flow ends; None for that of the clean end, t = 1 of a chain.  A chain takes more
            only for functions that are right at real t below 1.
        tolerance: the integrator's relative and absolute tolerance of each step, in (0, 1).
        max_steps: the largest number of steps.
        first_index: the number of the first example, as in `sample`.

    Returns:
        The likelihood of each example; NaN if max_steps are not enough.

    Raises:
        ValueError: an argument has the wrong type, shape or range.
    """
    check_arguments(key, model, first_index)
    process = model.process
    require("trace", trace, trace in ("hutchinson", "exact"), '"hutchinson" or "exact"')
    if bins is not None:
        bins = require_int("bins", bins, 2, "None or at least 2")
    max_steps = require_int("max_steps", max_steps, 1)
    require_number("tolerance", tolerance, "more than 0, less than 1")
    t_min = jnp.float32(process.first) if end is None else _time_of(process, end)
    require("tolerance", tolerance, 0 < tolerance < 1, "more than 0, less than 1")
    x = as_data(x, scaled=True).astype(jnp.float32)
    options = {"exact": trace == "exact", "bins": bins, "max_steps": max_steps}

    def placed(spec: PartitionSpec) -> tuple[PartitionSpec, ...]:
        one = PartitionSpec(rows_of(spec))
        return one, one, spec, PartitionSpec()

    args = (key, model.unclipped, x, first_index, t_min, tolerance)
    return Likelihood(*with_automatic_axes(partial(_log_likelihood, **options), args, x, placed))


def _time_of(process: Process, end: float) -> Array:
    """The time at which log SNR is `end`."""
    require_number("end", end, "None or a log SNR")
    require("end", end, math.isfinite(end), "None or a log SNR, a finite number")
    earliest = 0.0 if process.is_chain else process.first
    ends = in_float64(process.log_snr, [earliest, process.last]) if is_known(*jax.tree.leaves(process)) else None
    if ends is not None:
        lowest, highest = float(ends[1]), float(ends[0])
        most = f", at most {highest:.4g}" if math.isfinite(highest) else ""
        require("end", end, lowest < end <= highest, f"None or more than {lowest:.4g}{most}")
    return process.time(jnp.float32(end), earliest)


@partial(jax.jit, static_argnames=("exact", "bins", "max_steps"))
def _log_likelihood(
    key: Key,
    model: Denoiser,
    x: Array,
    first_index: Any,
    t_min: Any,
    tolerance: Any,
    *,
    exact: bool,
    bins: int | None,
    max_steps: int,
) -> tuple[Array, Array, Array, Array]:
    """The parts of a `Likelihood`."""
    import diffrax  # takes a second to import, which only this needs

    keys, dims, process = example_keys(key, first_index, len(x)), math.prod(x.shape[1:]), model.process

    def draws(index: int, draw: Any) -> Array:
        return jax.vmap(lambda k: draw(jax.random.fold_in(k, index), x.shape[1:]))(keys)

    if bins is not None:
        x = x + (draws(0, partial(jax.random.uniform, dtype=jnp.float32)) - 0.5) * 2 / (bins - 1)
    probe = jnp.zeros_like(x) if exact else draws(1, jax.random.rademacher).astype(jnp.float32)

    def flow(t: Any, state: tuple[Array, Array], _: Any) -> tuple[Array, Array]:
        return _with_divergence(lambda z: velocity(model, z, t), state[0], None if exact else probe)

    signal = lookup(process.signal, jnp.float32(t_min), x)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(flow),
        diffrax.Dopri5(),
        t0=jnp.float32(t_min),
        t1=jnp.float32(process.last),
        dt0=None,
        y0=(signal * x, jnp.zeros(len(x), jnp.float32)),
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance, norm=_largest),
        max_steps=max_steps,
        throw=False,
    )
    latent, divergence = (value[-1] for value in cast(tuple[Array, Array], solution.ys))
    noise = Normal(jnp.zeros_like(latent), jnp.hypot(process.signal(process.last), process.noise(process.last)))
    log_prob = noise.log_prob(latent).reshape(len(x), -1).sum(1) + divergence + dims * jnp.log(signal).reshape(())
    log_prob = jnp.where(solution.result == diffrax.RESULTS.successful, log_prob, jnp.nan)
    level = 0.0 if bins is None else math.log(2 / (bins - 1))  # log of a level's width
    bits = -(log_prob + dims * level) / (dims * math.log(2))
    return log_prob, bits, latent, (6 * solution.stats["num_steps"] + 1) * (dims + 1 if exact else 1)


def _largest(errors: Any) -> Array:
    """The largest error of any element, so that an example's accuracy does not depend on the rest of its batch."""
    return jnp.max(jnp.stack([jnp.max(jnp.abs(error)) for error in jax.tree.leaves(errors)]))


def _with_divergence(field: Any, z: Array, probe: Array | None) -> tuple[Array, Array]:
    """(field(z), its divergence for each example): estimated with a probe; exact if probe is None."""

    def product(v: Array) -> tuple[Array, Array]:
        value, tangent = jax.jvp(field, (z,), (v,))
        return value, jnp.sum((v * tangent).reshape(len(z), -1), axis=1)

    if probe is not None:
        return product(probe)
    basis = jnp.eye(math.prod(z.shape[1:]), dtype=jnp.float32).reshape(-1, 1, *z.shape[1:])
    traces = jax.lax.map(lambda v: product(jnp.broadcast_to(v, z.shape))[1], basis)
    return field(z), traces.sum(0)
