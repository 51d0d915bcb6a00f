"""Steering a network while it samples: wrappers around predict(z_t, t) that are predict(z_t, t) again.

    guided    towards a label: output = null + scale (conditional - null)
              (classifier-free guidance, Ho & Salimans 2022, arXiv 2207.12598, with scale = 1 + w)
    steered   up the gradient of any function of the predicted x:
              eps' = eps - scale noise_t grad_{z_t} log_likelihood(x predicted at z_t)
              (Dhariwal & Nichol 2021, 2105.05233, algorithm 2; Chung et al. 2023, 2209.14687, for functions of x)

Both act on the score: the first mixes two scores, the second adds the gradient of a log likelihood to one.
All targets are affine in it, so `guided` serves each of them.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.devices.axes import evaluate_automatically, lies_explicitly
from ddpm_jax.devices.functions import as_pytree
from ddpm_jax.diffusion.arrays import Batch, PerExample, Predict, Timesteps, Whole, lookup, per_example
from ddpm_jax.diffusion.denoiser import Decoder
from ddpm_jax.diffusion.schedule import Chain
from ddpm_jax.diffusion.targets import Eps, Target
from ddpm_jax.diffusion.variance import FixedSmall, Variance
from ddpm_jax.errors import as_int, require


@flax.struct.dataclass(eq=False)
class Guided:
    """predict(z_t, t) of classifier-free guidance; a function and a pytree."""

    predict: Any
    null_predict: Any
    scale: Any
    interval: tuple[int, int] | None = flax.struct.field(pytree_node=False)

    def __call__(self, z_t: Batch, t: Timesteps) -> Float[Array, "batch *out"]:
        """The guided output; where no t of the batch lies in the interval, the null network is not evaluated."""
        conditional = self.predict(z_t, t)
        times = jnp.broadcast_to(jnp.asarray(t), z_t.shape[:1])
        inside = jnp.ones(times.shape, bool)
        if self.interval is not None:
            inside = (times >= self.interval[0]) & (times <= self.interval[1])

        def mix() -> Array:
            null = self.null_predict(z_t, t)
            if null.shape != conditional.shape:
                raise ValueError(f"null_predict returned shape {null.shape} and predict {conditional.shape}")
            if null.shape != z_t.shape:  # twice the channels: the second half, the variance, stays the conditional one
                null = jnp.where(jnp.arange(null.shape[-1]) < z_t.shape[-1], null, conditional)
            guided = null + per_example(self.scale, z_t) * (conditional - null)
            return jnp.where(per_example(inside, z_t), guided, conditional)

        if self.interval is None:
            return mix()
        return jax.lax.cond(jnp.any(inside), mix, lambda: conditional)


def guided(
    predict: Predict,
    null_predict: Predict | None,
    scale: Float[Array, " batch"] | Float[Array, ""] | float,
    *,
    interval: tuple[Whole, Whole] | None = None,
) -> Guided:
    """Classifier-free guidance: null + scale (conditional - null), in the output's own terms.

    predict, null_predict: the network with the labels, and with the null label.  scale: a number, or [batch]; 1 is
    the conditional network, 0 the unconditional one, more than 1 stresses the label.  interval: (first, last), the
    timesteps that are guided; the others follow `predict` alone (Kynkaanniemi et al. 2024, arXiv 2404.07724).  Where
    the variance is learned, it is the conditional one.

    Raises ValueError without a null network, and where the interval is not two whole numbers.
    """
    if null_predict is None:
        raise ValueError(
            "null_predict is None; guidance needs the network with its null label, net.bind(params, "
            "labels=jnp.full(n, net.null_label)), which one trained with label_dropout > 0 has"
        )
    for name, value in {"predict": predict, "null_predict": null_predict}.items():
        require(name, value, callable(value), "a function predict(z_t, t)")
    return Guided(as_pytree(predict), as_pytree(null_predict), jnp.asarray(scale, jnp.float32), _interval(interval))


def _interval(given: Any) -> tuple[int, int] | None:
    """(first, last) as ints; None for all timesteps."""
    if given is None:
        return None
    parts = given if isinstance(given, tuple | list | np.ndarray) else ()
    ends = [end for end in map(as_int, parts) if end is not None]
    holds = len(ends) == len(parts) == 2 and 0 <= ends[0] <= ends[1]
    require("interval", given, holds, "(first, last), two timesteps")
    return ends[0], ends[1]


@flax.struct.dataclass(eq=False)
class Steered:
    """predict(z_t, t) of gradient guidance; a function and a pytree."""

    decoder: Decoder
    log_likelihood: Any
    scale: Any

    def __call__(self, z_t: Batch, t: Timesteps) -> Float[Array, "batch *out"]:
        if lies_explicitly(z_t):
            return evaluate_automatically(self, z_t, t)
        decoder = self.decoder

        def total(z: Array) -> tuple[Array, tuple[Array, Any]]:
            output, share = decoder.output(z, t)
            prediction = decoder.read(output, share, z, t)
            return jnp.sum(self.log_likelihood(prediction.x)), (prediction.eps, share)

        gradient, (eps, share) = jax.grad(total, has_aux=True)(jnp.asarray(z_t))
        eps = eps - per_example(self.scale, z_t) * lookup(decoder.schedule.noise, t, z_t) * gradient
        x, eps, _ = Eps().decode(decoder.schedule, eps, z_t, t)
        output = decoder.target.encode(decoder.schedule, x, eps, t)
        return jnp.asarray(output) if share is None else jnp.concatenate([output, 2 * share - 1], axis=-1)


def steered(
    predict: Predict,
    schedule: Chain,
    log_likelihood: Callable[[Any], PerExample],
    *,
    scale: Float[Array, " batch"] | Float[Array, ""] | float = 1.0,
    target: Target = Eps(),
    variance: Variance = FixedSmall(),
) -> Steered:
    """The network, steered towards x of high log_likelihood(x): [batch, ...] to [batch], any differentiable function.

    With log_likelihood(x) = log p(y | x) samples follow p(x | y) as far as p(y | z_t) is p(y | x predicted): exactly
    for a Gaussian x and a linear function, nearly so at small t.  One backward pass through the network a step.
    scale: a number, or [batch].  Pass the same log_likelihood again and the compiled program is used again.
    """
    decoder = Decoder.of(predict, schedule, target, variance, clip=False)
    require("log_likelihood", log_likelihood, callable(log_likelihood), "a function of x, [batch, ...] to [batch]")
    return Steered(decoder, as_pytree(log_likelihood), jnp.asarray(scale, jnp.float32))
