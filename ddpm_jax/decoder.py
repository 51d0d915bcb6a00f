r"""The learned decoder: a network's output read as p(z_s | z_t), the reverse of the forward process.

    output = predict(z_t, t)  ->  x predicted, clipped;  eps = (z_t - signal_t x) / noise_t            `denoise`
    p(z_s | z_t) = N( mean of q(z_s | z_t, x predicted),  var I ),     0 <= s < t                      `normal`

(Ho et al. 2020, section 3.2.)  The bound, the losses and the samplers all read the network through this one
value, so that they cannot disagree about the target, the variance or the clipping.
"""

from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.arrays import Batch, Predict, Timesteps
from ddpm_jax.axes import evaluate
from ddpm_jax.check import require
from ddpm_jax.clipping import Clipping, NoClipping, as_clipping
from ddpm_jax.forward import noise_between, posterior_weights, time_before
from ddpm_jax.functions import as_pytree
from ddpm_jax.gaussian import Normal
from ddpm_jax.schedule import NoiseSchedule, check_built
from ddpm_jax.targets import Eps, Prediction, Target
from ddpm_jax.variance import FixedSmall, Variance


@flax.struct.dataclass
class Decoder:
    """p(z_s | z_t) of a network; a pytree, so that a jitted function takes it as an argument."""

    predict: Any
    schedule: NoiseSchedule
    target: Target = flax.struct.field(pytree_node=False, default=Eps())
    variance: Variance = flax.struct.field(pytree_node=False, default=FixedSmall())
    clip: Clipping = flax.struct.field(pytree_node=False, default=NoClipping())

    @classmethod
    def of(
        cls, predict: Predict, schedule: NoiseSchedule, target: Target, variance: Variance, clip: bool | Clipping
    ) -> "Decoder":
        """The decoder of any function predict(z_t, t).

        Raises ValueError where a part is not what it must be.
        """
        require("predict", predict, callable(predict), "a function predict(z_t, t)")
        check_built(schedule)
        require("target", target, isinstance(target, Target), "a Target, such as Eps()")
        require("variance", variance, isinstance(variance, Variance), "a Variance, such as FixedSmall()")
        return cls(as_pytree(predict), schedule, target, variance, as_clipping(clip))

    def output(self, z_t: Batch, t: Timesteps) -> tuple[Float[Array, "batch *dims"], Float[Array, "..."] | None]:
        """(what the network says of the target, share of the variance or None), both float32 and shaped like z_t.

        Raises ValueError where the network's output has another shape: that of z_t, or with twice the channels
        where the variance is learned.
        """
        output, shape = evaluate(self.predict, z_t, t), tuple(z_t.shape)
        if not hasattr(output, "shape"):
            raise ValueError(
                f"the network returned a {type(output).__name__}; expected one array for data of shape {shape}"
            )
        output = jnp.asarray(output, jnp.float32)
        if not self.variance.learned:
            expected, why = shape, "they must be equal"
            if output.shape == (*shape[:-1], 2 * shape[-1]):
                why += ", unless the variance is LearnedRange(), which reads twice the channels"
        else:
            expected = (*shape[:-1], 2 * shape[-1])
            why = f"{type(self.variance).__name__} takes {expected} (a network with out_multiplier=2)"
        if output.shape != expected:
            raise ValueError(f"the network returned shape {output.shape} for data of shape {shape}; {why}")
        if not self.variance.learned:
            return output, None
        output, spread = jnp.split(output, 2, axis=-1)
        return output, (spread + 1) / 2

    def read(self, output: Batch, share: Float[Array, "..."] | None, z_t: Batch, t: Timesteps) -> Prediction:
        """The x and eps that an output stands for, x clipped, with the share of the variance."""
        x, eps, _ = self.target.decode(self.schedule, output, z_t, t)
        if not isinstance(self.clip, NoClipping):
            x = self.clip(x)
            eps = noise_between(self.schedule, z_t, x, t)
        return Prediction(x, eps, share)

    def denoise(self, z_t: Batch, t: Timesteps) -> Prediction:
        """x and eps predicted at z_t, t in 1..T."""
        return self.read(*self.output(z_t, t), z_t, t)

    def normal(
        self, prediction: Prediction, z_t: Batch, t: Timesteps, earlier: Timesteps, later: Timesteps | None = None
    ) -> Normal:
        """p(z_earlier | z_t), 0 <= earlier < t, given what was predicted at z_t.

        later: the time from which the chain came to t, as `variance` needs it; None: that of a chain of even steps.
        """
        later = time_before(self.schedule, t, earlier) if later is None else later
        a, b, _ = posterior_weights(self.schedule, t, earlier, z_t)
        var = self.variance(self.schedule, t, earlier, later, z_t, prediction.share)
        return Normal(mean=a * z_t + b * prediction.x, std=jnp.sqrt(var))
