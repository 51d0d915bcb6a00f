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
from ddpm_jax.diffusion.schedule import Chain, check_built
from ddpm_jax.errors import require, require_key


def transition(schedule: Chain, z_prev: Batch, t: Timesteps) -> Normal:
    """q(z_t | z_{t-1} = z_prev), one step of the chain; t in 1..T.

    Raises ValueError where a concrete t is outside 1..T, as do all functions here.
    """
    check_built(schedule)
    z_prev = as_data(z_prev, "z_prev")
    check_timesteps(t, 1, schedule.num_steps)
    beta = lookup(schedule.beta, t, z_prev)
    return Normal(mean=jnp.sqrt(1 - beta) * z_prev, std=jnp.sqrt(beta))


def marginal(schedule: Chain, x: Batch, t: Timesteps) -> Normal:
    """q(z_t | x), all t steps at once; t in 0..T, where t = 0 gives x itself with std 0."""
    check_built(schedule)
    x = as_data(x)
    check_timesteps(t, 0, schedule.num_steps)
    return Normal(mean=lookup(schedule.signal, t, x) * x, std=lookup(schedule.noise, t, x))


def diffuse(schedule: Chain, x: Batch, t: Timesteps, eps: Batch) -> Float[Array, "batch *dims"]:
    """z_t = signal_t x + noise_t eps, the draw from q(z_t | x) that the noise eps makes; t in 0..T.

    Raises ValueError where eps is not shaped like x.
    """
    check_built(schedule)
    x = as_data(x)
    check_shape("eps", eps, "x", x)
    check_timesteps(t, 0, schedule.num_steps)
    return lookup(schedule.signal, t, x) * x + lookup(schedule.noise, t, x) * eps


def noise_between(schedule: Chain, z_t: Batch, x: Batch, t: Timesteps) -> Float[Array, "batch *dims"]:
    """eps = (z_t - signal_t x) / noise_t, the noise that leads from x to z_t; t in 1..T."""
    check_built(schedule)
    z_t = as_data(z_t, "z_t")
    check_shape("x", x, "z_t", z_t)
    if not jnp.issubdtype(jnp.asarray(t).dtype, jnp.floating):
        check_timesteps(t, 1, schedule.num_steps)
    return (z_t - lookup(schedule.signal, t, x) * x) / lookup(schedule.noise, t, x)


def step_var(schedule: Chain, t: Timesteps, earlier: Timesteps | None, like: Batch) -> Float[Array, "..."]:
    """The variance of q(z_t | z_earlier), 1 - alpha_bar_t / alpha_bar_earlier; beta_t if earlier is None.

    Neighbours have beta_t from its table; a longer step is the difference of whichever of alpha_bar and
    1 - alpha_bar is the small one, so that float32 keeps its digits.
    """
    check_built(schedule)
    beta = lookup(schedule.beta, t, like)
    if earlier is None:
        return beta
    fall = lookup(schedule.alpha_bar, earlier, like) - lookup(schedule.alpha_bar, t, like)
    rise = lookup(schedule.noise_var, t, like) - lookup(schedule.noise_var, earlier, like)
    early = lookup(schedule.noise_var, earlier, like) < 0.5
    longer = jnp.where(early, rise, fall) / lookup(schedule.alpha_bar, earlier, like)
    adjacent = jnp.asarray(t) - earlier == 1
    return jnp.where(per_example(adjacent, like), beta, longer)


def posterior_weights(
    schedule: Chain, t: Timesteps, earlier: Timesteps | None, like: Batch
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
    """(a, b, var) of q(z_s | z_t, x) = N(a z_t + b x, var I), s = earlier (None: t - 1).

    a = signal_{t|s} (1 - alpha_bar_s) / (1 - alpha_bar_t),  b = signal_s var_{t|s} / (1 - alpha_bar_t),
    var = var_{t|s} (1 - alpha_bar_s) / (1 - alpha_bar_t)   (Ho et al. 2020, equation 7, for s = t - 1).
    """
    s = jnp.asarray(t) - 1 if earlier is None else earlier
    var_step = step_var(schedule, t, earlier, like)
    signal_s, signal_t = lookup(schedule.signal, s, like), lookup(schedule.signal, t, like)
    ratio = lookup(schedule.noise_var, s, like) / lookup(schedule.noise_var, t, like)
    return signal_t / signal_s * ratio, signal_s * var_step / lookup(schedule.noise_var, t, like), var_step * ratio


def posterior(schedule: Chain, z_t: Batch, x: Batch, t: Timesteps, earlier: Timesteps | None = None) -> Normal:
    """q(z_{t-1} | z_t, x), or q(z_s | z_t, x) for any s = earlier with 0 <= s < t; t in 1..T.

    At s = 0 the std is exactly 0 and the mean is x.  Raises ValueError where x is not shaped like z_t.
    """
    check_step(schedule, t, earlier)
    z_t = as_data(z_t, "z_t")
    check_shape("x", x, "z_t", z_t)
    a, b, var = posterior_weights(schedule, t, earlier, z_t)
    return Normal(mean=a * z_t + b * x, std=root(var))


def check_step(schedule: Chain, t: Timesteps, earlier: Timesteps | None, later: Timesteps | None = None) -> None:
    """Raise ValueError unless t lies in 1..T, earlier in 0..t-1 and later in t..T; None is not checked."""
    check_built(schedule)
    check_timesteps(t, 1, schedule.num_steps)
    if earlier is not None:
        check_timesteps(earlier, 0, schedule.num_steps - 1, "earlier")
        if not _traced(t, earlier) and np.any(np.asarray(earlier) >= np.asarray(t)):
            raise ValueError(f"earlier is {earlier} and t is {t}; earlier must be smaller than t")
    if later is not None:
        check_timesteps(later, 1, schedule.num_steps, "later")
        if not _traced(t, later) and np.any(np.asarray(later) < np.asarray(t)):
            raise ValueError(f"later is {later} and t is {t}; later must be at least t")


def _traced(*times: Timesteps) -> bool:
    return any(isinstance(time, jax.core.Tracer) for time in times)


def time_before(schedule: Chain, t: Timesteps, earlier: Timesteps) -> Int[Array, "..."]:
    """The time from which a chain of even steps comes to t, if it goes on to `earlier`: 2 t - earlier, at most T."""
    return jnp.minimum(2 * jnp.asarray(t) - earlier, schedule.num_steps)


def chain(key: Key, schedule: Chain, x: Batch) -> Float[Array, "T batch *dims"]:
    """z_1, ..., z_T drawn step by step from q(z_t | z_{t-1}), starting at z_0 = x.

    Returns [T, batch, ...]: entry t - 1 is z_t.  The noise of step t is a function of (key, t).
    """

    require_key(key)
    check_built(schedule)
    x = as_data(x)

    def step(z: Array, t: Array) -> tuple[Array, Array]:
        z = transition(schedule, z, t).sample(jax.random.fold_in(key, t))
        return z, z

    _, path = jax.lax.scan(step, jnp.asarray(x, jnp.float32), jnp.arange(1, schedule.num_steps + 1))
    return path


def walk(schedule: Chain, x: Batch, eps: Float[type_of_array, "T batch *dims"]) -> Float[Array, "T batch *dims"]:
    """z_1, ..., z_T, the chain from z_0 = x that the noises eps_1, ..., eps_T make, whatever their distribution.

    eps: [T, batch, ...]; entry t - 1, here and in the result, is that of t.  Raises ValueError for another shape.
    """
    check_built(schedule)
    x = as_data(x)
    shape = (schedule.num_steps, *x.shape)
    require("eps", eps.shape, eps.shape == shape, f"the shape {shape}, one noise for each step")

    def step(z: Array, item: tuple[Array, Array]) -> tuple[Array, Array]:
        t, noise = item
        q = transition(schedule, z, t)
        z = q.mean + q.std * noise
        return z, z

    times = jnp.arange(1, schedule.num_steps + 1)
    return jax.lax.scan(step, jnp.asarray(x, jnp.float32), (times, jnp.asarray(eps, jnp.float32)))[1]
