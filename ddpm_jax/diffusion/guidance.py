"""Steering a network while it samples: a denoiser in, a denoiser out.

    guided    towards a label: output = null + scale (conditional - null)
              (classifier-free guidance, Ho & Salimans 2022, arXiv 2207.12598, with scale = 1 + w)
    steered   up the gradient of a function of the predicted x, such as a classifier (classifier guidance):
              eps' = eps - scale noise_t grad_{z_t} log_likelihood(x predicted at z_t)
              (Dhariwal & Nichol 2021, 2105.05233, algorithm 2; Chung et al. 2023, 2209.14687, for functions of x)

Both act on the score: the first mixes two scores, the second adds the gradient of a log likelihood to one.  All targets
are affine in the score, so `guided` serves each of them.  Unclipped outputs are mixed; the result clips as the first
denoiser does.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.devices.axes import evaluate_automatically, lies_explicitly
from ddpm_jax.devices.functions import as_pytree
from ddpm_jax.diffusion.arrays import Batch, PerExample, Time, lookup, per_example
from ddpm_jax.diffusion.denoiser import Denoiser, check_denoiser
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.targets import convert
from ddpm_jax.errors import as_int, require, short_repr

__all__ = ["guided", "steered"]


@flax.struct.dataclass(eq=False)
class Guided:
    """predict(z_t, t) of classifier-free guidance; a function and a pytree."""

    model: Denoiser
    null_model: Denoiser
    scale: Any
    interval: tuple[int | float, int | float] | None = flax.struct.field(pytree_node=False)

    def __call__(self, z_t: Batch, t: Time) -> Float[Array, "batch *out"]:
        """The guided output; if no t of the batch lies in the interval, the null network is not evaluated."""
        model, null_model = self.model, self.null_model
        conditional, of_variance = model.output(z_t, t)
        times = jnp.broadcast_to(jnp.asarray(t), z_t.shape[:1])
        inside = jnp.ones(times.shape, bool)
        if self.interval is not None:
            inside = (times >= self.interval[0]) & (times <= self.interval[1])

        def mix() -> Array:
            null, _ = null_model.output(z_t, t)
            if null_model.target != model.target:
                null = convert(model.process, null, z_t, t, null_model.target, model.target)
            mixed = null + per_example(self.scale, z_t) * (conditional - null)
            return jnp.where(per_example(inside, z_t), mixed, conditional)

        output = mix() if self.interval is None else jax.lax.cond(jnp.any(inside), mix, lambda: conditional)
        return output if of_variance is None else jnp.concatenate([output, of_variance], axis=-1)


def guided(
    model: Denoiser,
    null_model: Denoiser | None,
    scale: Float[Array, " batch"] | Float[Array, ""] | float,
    *,
    interval: tuple[Time, Time] | None = None,
) -> Denoiser:
    """Classifier-free guidance: null + scale (conditional - null), in the output of `model`.

    Args:
        model: the denoiser with the labels.
        null_model: the denoiser with the null label, of the same process.
        scale: one number, or [batch]; 1 gives `model`, 0 gives `null_model`, more than 1 strengthens the label.
        interval: (first, last), the times that are guided; the others follow `model` alone (Kynkaanniemi et al.
            2024, arXiv 2404.07724).  None guides all.

    Returns:
        A denoiser with the target, variance and clipping of `model`.  A learned variance is that of `model`.

    Raises:
        ValueError: there is no null model, the processes differ, the scale is no number, or the interval is not two
            times.
    """
    check_denoiser(model)
    if null_model is None:
        raise ValueError(
            "null_model is None; guidance needs a denoiser with the null label, net.bind(params, "
            "labels=jnp.full(n, net.null_label)), which a network trained with label_dropout > 0 has"
        )
    check_denoiser(null_model, "null_model")
    if not _same_process(model, null_model):
        raise ValueError("null_model.process differs from model.process; expected the process of model")
    return dataclasses.replace(
        model, predict=Guided(model, null_model, _strength(scale), _interval(model.process, interval))
    )


def _strength(scale: Any) -> Array:
    """A scale as float32, () or [batch]."""
    try:
        strength = jnp.asarray(scale, jnp.float32)
    except (TypeError, ValueError):
        strength = None
    if strength is None or strength.ndim > 1:
        raise ValueError(f"scale is {short_repr(scale)}; expected one number, or one for each example")
    return strength


def _same_process(a: Denoiser, b: Denoiser) -> bool:
    """Whether two denoisers have one process; True if that is not known, inside a jitted function."""
    if a.process is b.process:
        return True
    leaves = jax.tree.leaves((a.process, b.process))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return True
    same = jax.tree.structure(a.process) == jax.tree.structure(b.process)
    return same and all(
        np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a.process, b.process)), strict=True)
    )


def _interval(process: Process, given: Any) -> tuple[int | float, int | float] | None:
    """(first, last) as numbers; None for all times."""
    if given is None:
        return None
    parts = given if isinstance(given, tuple | list | np.ndarray) else ()
    read = as_int if process.is_chain else as_real
    ends = [end for end in map(read, parts) if end is not None]
    holds = len(ends) == len(parts) == 2 and 0 <= ends[0] <= ends[1]
    require("interval", given, holds, f"(first, last), two {'timesteps' if process.is_chain else 'times'}")
    return ends[0], ends[1]


def as_real(value: Any) -> float | None:
    """A number as a float; None for anything else."""
    return float(value) if isinstance(value, int | float | np.number) and not isinstance(value, bool) else None


@flax.struct.dataclass(eq=False)
class Steered:
    """predict(z_t, t) of gradient guidance; a function and a pytree."""

    model: Denoiser
    log_likelihood: Any
    scale: Any

    def __call__(self, z_t: Batch, t: Time) -> Float[Array, "batch *out"]:
        """The output whose score has the gradient added."""
        if lies_explicitly(z_t):
            return evaluate_automatically(self, z_t, t)
        model = self.model

        def total(z: Array) -> tuple[Array, tuple[Array, Array, Any]]:
            output, of_variance = model.output(z, t)
            prediction = model.read(output, of_variance, z, t)
            return jnp.sum(self.log_likelihood(prediction.x)), (prediction.x, prediction.eps, of_variance)

        gradient, (x, eps, of_variance) = jax.grad(total, has_aux=True)(jnp.asarray(z_t))
        signal, noise = lookup(model.process.signal, t, z_t), lookup(model.process.noise, t, z_t)
        # The change of eps.  That of x follows, unless z_t says nothing of x.
        change = per_example(self.scale, z_t) * noise * gradient
        x, eps = x + jnp.where(signal > 0, noise / signal, 0.0) * change, eps - change
        output = jnp.asarray(model.target.encode(model.process, x, eps, t))
        return output if of_variance is None else jnp.concatenate([output, of_variance], axis=-1)


def steered(
    model: Denoiser,
    log_likelihood: Callable[[Any], PerExample],
    *,
    scale: Float[Array, " batch"] | Float[Array, ""] | float = 1.0,
) -> Denoiser:
    """The denoiser, steered towards x of high log_likelihood(x).

    With log_likelihood(x) = log p(y | x), samples follow p(x | y) as far as p(y | z_t) is p(y | x predicted): exactly
    for a Gaussian x and a linear function, approximately at small t.  Each step costs one backward pass through the
    network.

    Args:
        model: the denoiser.
        log_likelihood: any differentiable function of x, [batch, ...] to [batch].  The compiled program is reused if
            the same function is passed again.
        scale: one number, or [batch].

    Returns:
        A denoiser with the target, variance and clipping of `model`.

    Raises:
        ValueError: an argument has the wrong type.
    """
    check_denoiser(model)
    require("log_likelihood", log_likelihood, callable(log_likelihood), "a function of x, [batch, ...] to [batch]")
    predict = Steered(model.unclipped, as_pytree(log_likelihood), _strength(scale))
    return dataclasses.replace(model, predict=predict)
