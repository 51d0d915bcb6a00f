r"""The forward process: data x becomes noise, in T small steps or in continuous time.  Only formulas, no parameters.

    q(z_t | z_{t-1}) = N( sqrt(1 - beta_t) z_{t-1},  beta_t I ),      z_0 = x,  t = 1..T     `transition`
    q(z_t | x)       = N( sqrt(alpha_bar_t) x,  (1 - alpha_bar_t) I )                         `marginal`
    z_t              = sqrt(alpha_bar_t) x + sqrt(1 - alpha_bar_t) eps,  eps ~ N(0, I)        `diffuse`
    q(z_{t-1} | z_t, x)                                                                       `posterior`

(Ho et al. 2020, equations 2, 4, 6 and 7; *Understanding Deep Learning*, section 18.2.)

Why the marginal holds: induction over t.  For t = 1 it is the first line, as alpha_bar_1 = 1 - beta_1.
Suppose it holds for t - 1, so z_{t-1} = sqrt(alpha_bar_{t-1}) x + sqrt(1 - alpha_bar_{t-1}) eps'.  Then

    z_t = sqrt(1 - beta_t) z_{t-1} + sqrt(beta_t) eps''
        = sqrt((1 - beta_t) alpha_bar_{t-1}) x
          + sqrt((1 - beta_t)(1 - alpha_bar_{t-1})) eps' + sqrt(beta_t) eps'' .

The factor on x is sqrt(alpha_bar_t) by definition.  eps' and eps'' are independent standard normals, so
their sum is a centred normal, with variance (1 - beta_t)(1 - alpha_bar_{t-1}) + beta_t =
1 - (1 - beta_t) alpha_bar_{t-1} = 1 - alpha_bar_t, which is the claim for t.

The same argument from z_s instead of x gives q(z_t | z_s) for s < t, with signal_t / signal_s as the
factor and 1 - alpha_bar_t / alpha_bar_s as the variance, and Bayes' rule

    q(z_s | z_t, x) = q(z_t | z_s) q(z_s | x) / q(z_t | x)

a product of normals, so a normal: precisions add, and means are weighted by precision.

The formulas are written for a chain.  Those of every process are in `step`; a continuous process has q(z_t | x) and
q(z_s | z_t, x) for any real s < t.

Every function takes a batch [batch, ...] and times t, [batch] or one for all.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.diffusion.arrays import (
    Batch,
    Key,
    Time,
    as_data,
    check_shape,
    check_time,
    check_times,
    lookup,
    root,
    type_of_array,
)
from ddpm_jax.diffusion.gaussian import Normal
from ddpm_jax.diffusion.process import Process, check_process, require_chain
from ddpm_jax.errors import require, require_key

__all__ = ["chain", "diffuse", "marginal", "noise_between", "posterior", "transition", "walk"]


def transition(process: Process, z_s: Batch, t: Time, s: Time | None = None) -> Normal:
    """q(z_t | z_s), one step of the forward process.

    Args:
        process: the forward process.
        z_s: the latent at time s, float32 [batch, ...].
        t: [batch] or one for all; in 1..T for a chain.
        s: like t, before it; None for t - 1, in a chain.

    Returns:
        The normal distribution of z_t; for a chain and s = t - 1, its variance is beta_t.

    Raises:
        ValueError: a concrete time is out of range, as in every function here.
    """
    check_process(process)
    z_s = as_data(z_s, "z_s")
    step = process.step(t, before(process, t) if s is None else s)
    check_time(t, z_s)
    step = step.like(z_s)
    return Normal(mean=step.signal_t / step.signal_s * z_s, std=jnp.sqrt(step.forward_var))


def marginal(process: Process, x: Batch, t: Time) -> Normal:
    """q(z_t | x).

    Args:
        process: the forward process.
        x: the data, float32 [batch, ...].
        t: [batch] or one for all; in 0..T for a chain, real for a continuous process.

    Returns:
        The normal distribution of z_t; at t = 0 of a chain it is x with std 0.

    Raises:
        ValueError: x is not an array of floats, or t is out of range.
    """
    signal, noise, x = _factors(process, x, t, "x", clean=True)
    return Normal(mean=signal * x, std=noise)


def diffuse(process: Process, x: Batch, t: Time, eps: Batch) -> Float[Array, "batch *dims"]:
    """z_t = signal_t x + noise_t eps, the sample of q(z_t | x) for the noise eps (the reparameterization of q).

    Args:
        process: the forward process.
        x: the data, float32 [batch, ...].
        t: [batch] or one for all; in 0..T for a chain, real for a continuous process.
        eps: standard normal noise, shaped like x.

    Returns:
        z_t, float32 [batch, ...].

    Raises:
        ValueError: eps is not shaped like x, or t is out of range.
    """
    check_process(process)
    x = as_data(x)
    check_shape("eps", eps, "x", x)
    signal, noise, x = _factors(process, x, t, "x", clean=True)
    return signal * x + noise * eps


def noise_between(process: Process, z_t: Batch, x: Batch, t: Time) -> Float[Array, "batch *dims"]:
    """eps = (z_t - signal_t x) / noise_t, the noise that leads from x to z_t.

    Args:
        process: the forward process.
        z_t: the latent at time t, float32 [batch, ...].
        x: the data, shaped like z_t.
        t: [batch] or one for all; in 1..T for a chain, or any real t.

    Returns:
        eps, float32 [batch, ...].

    Raises:
        ValueError: x is not shaped like z_t, or t is out of range.
    """
    signal, noise, z_t = _factors(process, z_t, t, "z_t")
    check_shape("x", x, "z_t", z_t)
    return (z_t - signal * x) / noise


def _factors(process: Process, z: Batch, t: Time, name: str, clean: bool = False) -> tuple[Array, Array, Array]:
    """(signal_t, noise_t, z), the first two shaped to broadcast against z; ValueError if an argument is wrong."""
    check_process(process)
    z = as_data(z, name)
    real = isinstance(t, float) or jnp.issubdtype(getattr(t, "dtype", int), jnp.floating)
    if process.is_chain and real:
        check_times(t, 0, process.last)
    else:
        process.check_time(t, clean=clean and process.is_chain)
    return lookup(process.signal, t, z), lookup(process.noise, t, z), z


def posterior(process: Process, z_t: Batch, x: Batch, t: Time, s: Time | None = None) -> Normal:
    """q(z_s | z_t, x), the forward process run backwards when x is known.

    Args:
        process: the forward process.
        z_t: the latent at time t, float32 [batch, ...].
        x: the data, shaped like z_t.
        t: [batch] or one for all; in 1..T for a chain.
        s: like t, before it; None for t - 1, in a chain.

    Returns:
        The normal distribution of z_s; at clean data its std is exactly 0 and its mean is x.

    Raises:
        ValueError: x is not shaped like z_t, or a time is out of range.
    """
    check_process(process)
    step = process.step(t, before(process, t) if s is None else s)
    z_t = as_data(z_t, "z_t")
    check_time(t, z_t)
    check_shape("x", x, "z_t", z_t)
    step = step.like(z_t)
    return Normal(mean=step.a * z_t + step.b * x, std=root(step.var))


def before(process: Process, t: Time) -> Time:
    """t - 1, in a chain; ValueError for a continuous process, where nothing is the time before t."""
    require_chain(process, "s=None")
    process.check_time(t)
    return jnp.asarray(t) - 1


def chain(key: Key, process: Process, x: Batch) -> Float[Array, "T batch *dims"]:
    """z_1, ..., z_T drawn step by step from q(z_t | z_{t-1}), starting at z_0 = x.

    Args:
        key: the key of the noise; that of step t is a function of (key, t).
        process: a chain.
        x: the data, float32 [batch, ...].

    Returns:
        float32 [T, batch, ...]; entry t - 1 is z_t.

    Raises:
        ValueError: an argument has the wrong type.
    """
    require_key(key)
    num_steps = require_chain(process, "chain")
    x = as_data(x)

    def step(z: Array, t: Array) -> tuple[Array, Array]:
        z = transition(process, z, t).sample(jax.random.fold_in(key, t))
        return z, z

    _, path = jax.lax.scan(step, jnp.asarray(x, jnp.float32), jnp.arange(1, num_steps + 1))
    return path


def walk(process: Process, x: Batch, eps: Float[type_of_array, "T batch *dims"]) -> Float[Array, "T batch *dims"]:
    """z_1, ..., z_T, the chain from z_0 = x with the given noises, whatever their distribution.

    Args:
        process: a chain.
        x: the data, float32 [batch, ...].
        eps: the noises, float32 [T, batch, ...]; entry t - 1 is that of step t.

    Returns:
        float32 [T, batch, ...]; entry t - 1 is z_t.

    Raises:
        ValueError: eps has another shape.
    """
    num_steps = require_chain(process, "walk")
    x = as_data(x)
    shape = (num_steps, *x.shape)
    require("eps", eps.shape, eps.shape == shape, f"the shape {shape}, one noise for each step")

    def step(z: Array, item: tuple[Array, Array]) -> tuple[Array, Array]:
        t, noise = item
        q = transition(process, z, t)
        z = q.mean + q.std * noise
        return z, z

    times = jnp.arange(1, num_steps + 1)
    return jax.lax.scan(step, jnp.asarray(x, jnp.float32), (times, jnp.asarray(eps, jnp.float32)))[1]
