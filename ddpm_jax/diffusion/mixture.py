r"""Mixtures of normals as data: many modes, and every quantity of diffusion in closed form.

    p(x)         = sum_k w_k N(x; m_k, s_k^2 I),    k = 1..K                                      `log_prob`, `sample`
    p(z_t)       = sum_k w_k N(z_t; signal_t m_k, v_{k,t} I),    v_{k,t} = signal_t^2 s_k^2 + noise_t^2
                                                                                                   `diffused`
    p(k | z_t)   proportional to w_k N(z_t; signal_t m_k, v_{k,t} I)                               `responsibilities`
    E[x | z_t]   = sum_k p(k | z_t) E[x | z_t, k]                                                  `denoiser`
    E[x | z_t,k] = m_k + signal_t s_k^2 / v_{k,t} (z_t - signal_t m_k)
    q(z_s | z_t) = sum_k p(k | z_t) N(z_s; a z_t + b E[x | z_t, k], (var + b^2 var[x | z_t, k]) I)    `reverse`

with (a, b, var) those of q(z_s | z_t, x) (`step`).  The first line becomes the second because
z_t = signal_t x + noise_t eps is, given k, a sum of independent normals; the others are Bayes' rule.

So the best possible network is known, `denoiser`: samplers, bounds and trained networks can be held against the truth.
"""

import math
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from jax.tree_util import Partial
from jaxtyping import Array, Float

from ddpm_jax.diffusion.arrays import (
    Batch,
    Key,
    PerExample,
    Time,
    Whole,
    as_data,
    lookup,
    per_example,
    root,
)
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.forward import before
from ddpm_jax.diffusion.gaussian import Normal
from ddpm_jax.diffusion.process import Process, check_process
from ddpm_jax.diffusion.targets import X
from ddpm_jax.errors import as_numbers, require, require_int, require_key

__all__ = ["Mixture"]


@flax.struct.dataclass
class Mixture:
    """sum_k weights_k N(means_k, stds_k^2 I); make one with `Mixture.of`, which checks it.

    weights: [K], summing to 1.  means: [K, ...], each shaped like an example; [K] for data that are numbers.
    stds: [K], more than 0, or exactly 0 where a component is a point (then it can be diffused and sampled only).
    """

    weights: Float[Array, "*components"]
    means: Float[Array, "..."]
    stds: Float[Array, "*components"]

    @classmethod
    def of(cls, weights: object, means: object, stds: object) -> "Mixture":
        """The mixture of K components.

        Args:
            weights: K numbers above 0 whose sum is 1.
            means: [K, ...], one mean for each component.
            stds: [K], or one number for all.

        Raises:
            ValueError: the parts do not fit together.
        """
        named = {"weights": weights, "means": means, "stds": stds}
        w, m, s = (as_numbers(name, part) for name, part in named.items())
        positive = w.ndim == 1 and w.size > 0 and bool(np.all(w > 0) and abs(w.sum() - 1) < 1e-6)
        require("weights", weights, positive, "K numbers above 0 whose sum is 1")
        holds = m.shape[:1] == w.shape and bool(np.all(np.isfinite(m)))
        require("means", means, holds, f"finite numbers [{len(w)}, ...], one mean for each weight")
        holds = s.shape in ((), w.shape) and bool(np.all((s >= 0) & np.isfinite(s)))
        require("stds", stds, holds, f"one number, or {len(w)}, each 0 or more")
        return cls(*(jnp.asarray(part, jnp.float32) for part in (w, m, np.broadcast_to(s, w.shape))))

    def sample(self, key: Key, count: Whole) -> Float[Array, "count ..."]:
        """Draw examples.

        Args:
            key: the key.
            count: the number of examples.

        Returns:
            float32 [count, ...].

        Raises:
            ValueError: an argument has the wrong type, or count is less than 1.
        """
        require_key(key)
        return self._sample(key, require_int("count", count, 0))

    @partial(jax.jit, static_argnames="count")
    def _sample(self, key: Key, count: int) -> Array:
        which, noise = jax.random.split(key)
        k = jax.random.choice(which, len(self.weights), (count,), p=self.weights)
        eps = jax.random.normal(noise, (count, *self.means.shape[1:]))
        return self.means[k] + per_example(self.stds[k], eps) * eps

    @jax.jit
    def log_prob(self, y: Batch) -> PerExample:
        """log p(y) in nats, [batch]."""
        return jax.nn.logsumexp(self._log_joint(y), axis=1)

    @jax.jit
    def responsibilities(self, y: Batch) -> Float[Array, "batch components"]:
        """p(k | y): which component made y; rows sum to 1."""
        return jax.nn.softmax(self._log_joint(y), axis=1)

    @jax.jit
    def score(self, y: Batch) -> Float[Array, "batch ..."]:
        """grad log p(y), shaped like y."""
        pull = (self.means[None] - jnp.asarray(y)[:, None]) / per_example(self.stds, self.means)[None] ** 2
        return _average(self.responsibilities(y), pull)

    @jax.jit
    def cdf(self, y: Float[Array, " batch"] | Float[np.ndarray, " batch"]) -> Float[Array, " batch"]:
        """P(x < y), for data that are numbers (means [K])."""
        require("means", self.means.shape, self.means.ndim == 1, "the shape (K,): a cdf is for data that are numbers")
        each = jnp.exp(log_ndtr((jnp.asarray(y)[:, None] - self.means[None]) / self.stds[None]))
        return jnp.matmul(each, self.weights, precision=jax.lax.Precision.HIGHEST)

    @jax.jit
    def moments(self) -> Normal:
        """The normal with independent elements nearest to this in KL(self || .): that with its means and variances."""
        mean = _average(self.weights[None], self.means[None])
        spread = per_example(self.stds, self.means) ** 2 + (self.means - mean) ** 2
        return Normal(mean[0], root(_average(self.weights[None], spread[None])[0]))

    def diffused(self, process: Process, t: Time) -> "Mixture":
        """p(z_t), for one t.

        Args:
            process: the forward process.
            t: the time.

        Raises:
            ValueError: t is not one time.
        """
        check_process(process)
        require("t", t, jnp.ndim(t) == 0, "one t for all")
        signal, var = _marginal_of(self, process, t, self.weights)
        return Mixture(self.weights, signal[0, 0] * self.means, jnp.sqrt(var[0]))

    def denoiser(self, process: Process) -> Denoiser:
        """The best denoiser there is, E[x | z_t], with the target X(); it takes real t, too."""
        check_process(process)
        return Denoiser(Partial(_expected_x, self, process), process, X())

    def reverse(self, process: Process, z_t: Batch, t: Time, s: Time | None = None) -> "Mixture":
        """q(z_s | z_t), without x: one mixture for each z_t of the batch; `process.clean` gives p(x | z_t).

        Args:
            process: the forward process.
            z_t: the latent at time t, float32 [batch, ...].
            t: [batch] or one for all; in 1..T for a chain.
            s: like t, before it; None for t - 1, in a chain.

        Returns:
            A mixture whose parts have the batch as their first axis: `jax.vmap` over it reads one mixture at a time, as
            in jax.vmap(Mixture.moments)(q).
        """
        check_process(process)
        z_t = jnp.asarray(z_t)
        step = process.step(t, before(process, t) if s is None else s)
        x, x_var, k = _given_component(self, process, z_t, t)
        wide = step.like(z_t)
        means = (wide.a * z_t)[:, None] + jnp.expand_dims(wide.b, 1) * x
        flat_b, flat_var = (jnp.reshape(part, (-1, 1)) for part in (step.b, step.var))
        return Mixture(k, means, jnp.broadcast_to(root(flat_var + flat_b**2 * x_var), k.shape))

    def modes(self, starts: Batch, steps: Whole = 200, apart: float = 1e-2) -> Float[np.ndarray, "modes ..."]:
        """The local maxima of the density that are reached from `starts`, each once.

        `steps` of y <- sum_k r_k m_k / s_k^2 / sum_k r_k / s_k^2, r_k = p(k | y), which never lower the density (mean
        shift; Carreira-Perpinan 2000, doi 10.1109/34.888716), then Newton's method.  What does not end on top, such as
        at a saddle, is left out.

        Args:
            starts: where to start, float32 [starts, ...].
            steps: the number of steps of the mean shift.
            apart: ends nearer than this to each other are one mode.

        Returns:
            float [modes, ...].
        """
        starts = as_data(starts, "starts").astype(jnp.float32)
        ends, on_top = _ascend(self, starts, require_int("steps", steps, 0), apart)
        found: list[np.ndarray] = []
        for end in np.asarray(ends)[np.asarray(on_top)]:
            if all(np.linalg.norm(end - other) > apart for other in found):
                found.append(end)
        return np.array(found).reshape(-1, *self.means.shape[1:])

    def _log_joint(self, y: Batch) -> Float[Array, "batch components"]:
        """log w_k N(y; m_k, s_k^2 I)."""
        residual = jnp.asarray(y, jnp.float32)[:, None] - self.means[None]
        return _log_joint(self.weights, residual, self.stds[None])


def _log_joint(weights: Array, residual: Array, stds: Array) -> Float[Array, "batch components"]:
    """log w_k N(residual_k; 0, stds_k^2 I): residual [batch, K, ...], stds [batch or 1, K]."""
    each = Normal(jnp.zeros_like(residual), per_example(stds, residual)).log_prob(residual)
    return jnp.log(weights)[None] + each.reshape(*residual.shape[:2], -1).sum(2)


def _average(weights: Array, values: Array) -> Array:
    """sum_k weights[., k] values[., k, ...]."""
    return jnp.sum(weights.reshape(*weights.shape, *(1,) * (values.ndim - 2)) * values, axis=1)


def _marginal_of(mixture: Mixture, process: Process, t: Time, like: Batch) -> tuple[Array, Array]:
    """(signal_t, v_{k,t}) shaped to broadcast against [batch, K]; [1, 1] and [1, K] for one t."""
    # At a real t the noise is the curve, as in the probability flow, and its square the variance.
    signal, noise = (lookup(table, t, like).reshape(-1, 1) for table in (process.signal, process.noise))
    return signal, signal**2 * mixture.stds[None] ** 2 + noise**2


def _given_component(mixture: Mixture, process: Process, z_t: Array, t: Time) -> tuple[Array, Array, Array]:
    """(E[x | z_t, k] [batch, K, ...], var[x | z_t, k] [batch, K], p(k | z_t) [batch, K])."""
    signal, var = _marginal_of(mixture, process, t, z_t)

    def wide(values: Array) -> Array:
        return per_example(values, z_t[:, None])

    own_var = mixture.stds[None] ** 2
    residual = z_t[:, None] - wide(signal) * mixture.means[None]
    x = mixture.means[None] + wide(signal * own_var / var) * residual
    x_var = own_var * (var - signal**2 * own_var) / var
    return x, x_var, jax.nn.softmax(_log_joint(mixture.weights, residual, jnp.sqrt(var)), axis=1)


def _expected_x(mixture: Mixture, process: Process, z_t: Batch, t: Time) -> Float[Array, "batch ..."]:
    """E[x | z_t]."""
    x, _, k = _given_component(mixture, process, jnp.asarray(z_t), t)
    return _average(k, x)


def _shifted(mixture: Mixture, y: Batch) -> Float[Array, "batch ..."]:
    """One step of mean shift, y + score(y) / sum_k r_k / s_k^2."""
    pull = mixture.responsibilities(y) / mixture.stds[None] ** 2
    return _average(pull / pull.sum(1, keepdims=True), mixture.means[None])


@partial(jax.jit, static_argnames="steps")
def _ascend(mixture: Mixture, starts: Array, steps: int, apart: Any) -> tuple[Array, Array]:
    """(the end of the ascent from each start, whether it is a maximum)."""
    size = math.prod(starts.shape[1:])

    def slope(flat: Array) -> Array:
        return mixture.score(flat.reshape(1, *starts.shape[1:])).reshape(size)

    def newton(flat: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        hessian = jax.vmap(jax.jacfwd(slope))(flat)
        step = jnp.linalg.solve(hessian, jax.vmap(slope)(flat)[..., None])[..., 0]
        return flat - step, (jnp.linalg.norm(step, axis=1), jnp.linalg.eigvalsh(hessian)[:, -1])

    near = jax.lax.fori_loop(0, steps, lambda _, y: _shifted(mixture, y), starts).reshape(len(starts), size)
    ends, (moved, curvature) = jax.lax.scan(newton, near, length=20)
    return ends.reshape(starts.shape), (curvature[-1] < 0) & (moved[-1] < apart / 10)
