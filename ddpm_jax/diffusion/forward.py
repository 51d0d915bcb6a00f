r"""The forward process: data x becomes noise z_T in T small steps.  No parameters, only formulas.

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

Every function takes a batch [batch, ...] and integer timesteps t, [batch] or one for all.
"""

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddpm_jax.diffusion.arrays import (
    Batch,
    Key,
    Timesteps,
    as_data,
    check_shape,
    check_timesteps,
    lookup,
    per_example,
    root,
    type_of_array,
)
from ddpm_jax.diffusion.gaussian import Normal
from ddpm_jax.diffusion.process import Process, check_process
from ddpm_jax.errors import require, require_key

__all__ = ["chain", "check_step", "diffuse", "marginal", "noise_between", "posterior", "posterior_weights"]
__all__ += ["step_var", "time_before", "transition", "walk"]


def transition(process: Process, z_prev: Batch, t: Timesteps) -> Normal:
    """q(z_t | z_{t-1}), one step of the chain.

    Args:
        process: the forward process.
        z_prev: z_{t-1}, float32 [batch, ...].
        t: int32, [batch] or one for all, in 1..T.

    Returns:
        The normal distribution of z_t.

    Raises:
        ValueError: a concrete t is out of range, as in every function here.
    """
    check_process(process)
    z_prev = as_data(z_prev, "z_prev")
    check_timesteps(t, 1, process.num_steps)
    beta = lookup(process.beta, t, z_prev)
    return Normal(mean=jnp.sqrt(1 - beta) * z_prev, std=jnp.sqrt(beta))


def marginal(process: Process, x: Batch, t: Timesteps) -> Normal:
    """q(z_t | x), t steps at once.

    Args:
        process: the forward process.
        x: the data, float32 [batch, ...].
        t: int32, [batch] or one for all, in 0..T.

    Returns:
        The normal distribution of z_t; at t = 0 it is x with std 0.

    Raises:
        ValueError: x is not an array of floats, or t is out of range.
    """
    check_process(process)
    x = as_data(x)
    check_timesteps(t, 0, process.num_steps)
    return Normal(mean=lookup(process.signal, t, x) * x, std=lookup(process.noise, t, x))


def diffuse(process: Process, x: Batch, t: Timesteps, eps: Batch) -> Float[Array, "batch *dims"]:
    """z_t = signal_t x + noise_t eps, the sample of q(z_t | x) for the noise eps (the reparameterization of q).

    Args:
        process: the forward process.
        x: the data, float32 [batch, ...].
        t: int32, [batch] or one for all, in 0..T.
        eps: standard normal noise, shaped like x.

    Returns:
        z_t, float32 [batch, ...].

    Raises:
        ValueError: eps is not shaped like x, or t is out of range.
    """
    check_process(process)
    x = as_data(x)
    check_shape("eps", eps, "x", x)
    check_timesteps(t, 0, process.num_steps)
    return lookup(process.signal, t, x) * x + lookup(process.noise, t, x) * eps


def noise_between(process: Process, z_t: Batch, x: Batch, t: Timesteps) -> Float[Array, "batch *dims"]:
    """eps = (z_t - signal_t x) / noise_t, the noise that leads from x to z_t.

    Args:
        process: the forward process.
        z_t: the latent at time t, float32 [batch, ...].
        x: the data, shaped like z_t.
        t: integer or real, [batch] or one for all, in 1..T.

    Returns:
        eps, float32 [batch, ...].

    Raises:
        ValueError: x is not shaped like z_t, or t is out of range.
    """
    check_process(process)
    z_t = as_data(z_t, "z_t")
    check_shape("x", x, "z_t", z_t)
    if not jnp.issubdtype(jnp.asarray(t).dtype, jnp.floating):
        check_timesteps(t, 1, process.num_steps)
    return (z_t - lookup(process.signal, t, x) * x) / lookup(process.noise, t, x)


def step_var(process: Process, t: Timesteps, s: Timesteps | None, like: Batch) -> Float[Array, "..."]:
    """The variance of q(z_t | z_s), 1 - alpha_bar_t / alpha_bar_s.

    Neighbours have beta_t from its table.  A longer step is the difference of whichever of alpha_bar and
    1 - alpha_bar is the smaller one, so that float32 keeps its digits.

    Args:
        process: the forward process.
        t: int32, [batch] or one for all, in 1..T.
        s: like t, in 0..t-1; None for t - 1.
        like: the batch that the result broadcasts against.

    Returns:
        float32 [batch, 1, ..., 1].
    """
    check_process(process)
    beta = lookup(process.beta, t, like)
    if s is None:
        return beta
    fall = lookup(process.alpha_bar, s, like) - lookup(process.alpha_bar, t, like)
    rise = lookup(process.noise_var, t, like) - lookup(process.noise_var, s, like)
    early = lookup(process.noise_var, s, like) < 0.5
    longer = jnp.where(early, rise, fall) / lookup(process.alpha_bar, s, like)
    adjacent = jnp.asarray(t) - s == 1
    return jnp.where(per_example(adjacent, like), beta, longer)


def posterior_weights(
    process: Process, t: Timesteps, s: Timesteps | None, like: Batch
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
    """(a, b, var) of q(z_s | z_t, x) = N(a z_t + b x, var I).

    a = signal_{t|s} (1 - alpha_bar_s) / (1 - alpha_bar_t),  b = signal_s var_{t|s} / (1 - alpha_bar_t),
    var = var_{t|s} (1 - alpha_bar_s) / (1 - alpha_bar_t)   (Ho et al. 2020, equation 7, for s = t - 1).

    Args:
        process: the forward process.
        t: int32, [batch] or one for all, in 1..T.
        s: like t, in 0..t-1; None for t - 1.
        like: the batch that the results broadcast against.

    Returns:
        Three float32 arrays [batch, 1, ..., 1].
    """
    var_step = step_var(process, t, s, like)
    s = jnp.asarray(t) - 1 if s is None else s
    signal_s, signal_t = lookup(process.signal, s, like), lookup(process.signal, t, like)
    ratio = lookup(process.noise_var, s, like) / lookup(process.noise_var, t, like)
    return signal_t / signal_s * ratio, signal_s * var_step / lookup(process.noise_var, t, like), var_step * ratio


def posterior(process: Process, z_t: Batch, x: Batch, t: Timesteps, s: Timesteps | None = None) -> Normal:
    """q(z_s | z_t, x), the forward process run backwards when x is known.

    Args:
        process: the forward process.
        z_t: the latent at time t, float32 [batch, ...].
        x: the data, shaped like z_t.
        t: int32, [batch] or one for all, in 1..T.
        s: like t, in 0..t-1; None for t - 1.

    Returns:
        The normal distribution of z_s; at s = 0 its std is exactly 0 and its mean is x.

    Raises:
        ValueError: x is not shaped like z_t, or a time is out of range.
    """
    check_step(process, t, s)
    z_t = as_data(z_t, "z_t")
    check_shape("x", x, "z_t", z_t)
    a, b, var = posterior_weights(process, t, s, z_t)
    return Normal(mean=a * z_t + b * x, std=root(var))


def check_step(process: Process, t: Timesteps, s: Timesteps | None, u: Timesteps | None = None) -> None:
    """Raise ValueError unless t is in 1..T, s in 0..t-1 and u in t..T; None is not checked."""
    check_process(process)
    check_timesteps(t, 1, process.num_steps)
    if s is not None:
        check_timesteps(s, 0, process.num_steps - 1, "s")
        if not _traced(t, s) and np.any(np.asarray(s) >= np.asarray(t)):
            raise ValueError(f"s is {s} and t is {t}; s must be smaller than t")
    if u is not None:
        check_timesteps(u, 1, process.num_steps, "u")
        if not _traced(t, u) and np.any(np.asarray(u) < np.asarray(t)):
            raise ValueError(f"u is {u} and t is {t}; u must be at least t")


def _traced(*times: Timesteps) -> bool:
    return any(isinstance(time, jax.core.Tracer) for time in times)


def time_before(process: Process, t: Timesteps, s: Timesteps) -> Int[Array, "..."]:
    """The time u before t in a chain of even steps u, t, s: 2 t - s, at most T."""
    return jnp.minimum(2 * jnp.asarray(t) - s, process.num_steps)


def chain(key: Key, process: Process, x: Batch) -> Float[Array, "T batch *dims"]:
    """z_1, ..., z_T drawn step by step from q(z_t | z_{t-1}), starting at z_0 = x.

    Args:
        key: the key of the noise; that of step t is a function of (key, t).
        process: the forward process.
        x: the data, float32 [batch, ...].

    Returns:
        float32 [T, batch, ...]; entry t - 1 is z_t.

    Raises:
        ValueError: an argument has the wrong type.
    """
    require_key(key)
    check_process(process)
    x = as_data(x)

    def step(z: Array, t: Array) -> tuple[Array, Array]:
        z = transition(process, z, t).sample(jax.random.fold_in(key, t))
        return z, z

    _, path = jax.lax.scan(step, jnp.asarray(x, jnp.float32), jnp.arange(1, process.num_steps + 1))
    return path


def walk(process: Process, x: Batch, eps: Float[type_of_array, "T batch *dims"]) -> Float[Array, "T batch *dims"]:
    """z_1, ..., z_T, the chain from z_0 = x with the given noises, whatever their distribution.

    Args:
        process: the forward process.
        x: the data, float32 [batch, ...].
        eps: the noises, float32 [T, batch, ...]; entry t - 1 is that of step t.

    Returns:
        float32 [T, batch, ...]; entry t - 1 is z_t.

    Raises:
        ValueError: eps has another shape.
    """
    check_process(process)
    x = as_data(x)
    shape = (process.num_steps, *x.shape)
    require("eps", eps.shape, eps.shape == shape, f"the shape {shape}, one noise for each step")

    def step(z: Array, item: tuple[Array, Array]) -> tuple[Array, Array]:
        t, noise = item
        q = transition(process, z, t)
        z = q.mean + q.std * noise
        return z, z

    times = jnp.arange(1, process.num_steps + 1)
    return jax.lax.scan(step, jnp.asarray(x, jnp.float32), (times, jnp.asarray(eps, jnp.float32)))[1]
