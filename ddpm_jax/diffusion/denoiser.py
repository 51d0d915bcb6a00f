r"""The denoiser: a network, and everything that says how to read its output.

    output = predict(z_t, t)  ->  x predicted, clipped if asked;  eps = (z_t - signal_t x) / noise_t    `denoise`
    p(z_s | z_t) = N( mean of q(z_s | z_t, x predicted),  var I ),     s < t                             `normal`

(Ho et al. 2020, section 3.2.)  The losses, the bound, the likelihood, guidance and the samplers all take this one
value, so they cannot disagree about the target, the variance or the clipping:

    model = Denoiser(net.bind(params), Cosine().build(), target=V(), clip=Clip())
    x = sample(key, model, Ddim(50), shape=(64, 32, 32, 3))
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.devices.axes import evaluate
from ddpm_jax.devices.functions import as_pytree
from ddpm_jax.diffusion.arrays import Batch, Time, as_data, check_first_index, check_time, per_example
from ddpm_jax.diffusion.clipping import Clipping, NoClipping
from ddpm_jax.diffusion.forward import noise_between
from ddpm_jax.diffusion.gaussian import Normal
from ddpm_jax.diffusion.process import Process, check_process
from ddpm_jax.diffusion.step import Step
from ddpm_jax.diffusion.targets import Edm, Eps, Prediction, Target, check_target
from ddpm_jax.diffusion.variance import FixedSmall, Variance
from ddpm_jax.errors import require, require_key, require_part

__all__ = ["Denoiser"]


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False)
class Denoiser:
    """A network read as p(z_s | z_t); a pytree, so that a jitted function takes it as an argument.

    Raises ValueError if a part has the wrong type.
    """

    predict: Any
    """predict(z_t, t): float32 [batch, ...] and the time, [batch], to the network's output.  Any callable: a bound
    network, an Equinox or NNX module, a functools.partial (`ddpm_jax.devices.functions`)."""
    process: Process
    """The forward process that the network was trained for."""
    target: Target = Eps()
    """What the network predicts."""
    variance: Variance = FixedSmall()
    """The variance of p(z_s | z_t)."""
    clip: Clipping = NoClipping()
    """How the predicted x is clipped, in sampling and in the bound.  Losses, likelihood and inversion never clip."""

    def __post_init__(self) -> None:
        require("predict", self.predict, callable(self.predict), "a function predict(z_t, t)")
        check_process(self.process)
        require_part("target", self.target, Target, "a Target, such as Eps()")
        check_target(self.target, self.process)
        require_part("variance", self.variance, Variance, "a Variance, such as FixedSmall()")
        require_part("clip", self.clip, Clipping, "a Clipping, such as Clip() or NoClipping()")
        object.__setattr__(self, "predict", as_pytree(self.predict))

    def tree_flatten(self) -> tuple[Any, Any]:
        """(arrays, rest), as JAX asks for."""
        return (self.predict, self.process), (self.target, self.variance, self.clip)

    @classmethod
    def tree_unflatten(cls, rest: Any, arrays: Any) -> "Denoiser":
        """The inverse of `tree_flatten`; checks nothing, as JAX also puts other things in the place of arrays."""
        new = object.__new__(cls)
        for field, value in zip(dataclasses.fields(cls), (*arrays, *rest), strict=True):
            object.__setattr__(new, field.name, value)
        return new

    @property
    def unclipped(self) -> "Denoiser":
        """The same denoiser without clipping."""
        return dataclasses.replace(self, clip=NoClipping())

    def output(self, z_t: Batch, t: Time) -> tuple[Float[Array, "batch *dims"], Float[Array, "..."] | None]:
        """The network's output at z_t.

        Args:
            z_t: float32 [batch, ...].
            t: [batch] or one for all; in 1..T for a chain.

        Returns:
            (the output for the target, the output for the variance or None), each float32 and shaped like z_t.

        Raises:
            ValueError: the output is not one array shaped like z_t, with twice the channels if the variance is learned;
                or z_t is not an array of floats, or t has the wrong shape.
        """
        z_t = as_data(z_t, "z_t")
        check_time(t, z_t)
        found, shape = evaluate(self.predict, z_t, t), tuple(z_t.shape)
        if not hasattr(found, "shape"):
            kind = type(found).__name__
            raise ValueError(f"the network returned a {kind}; expected one array for data of shape {shape}")
        output = jnp.asarray(found, jnp.float32)
        doubled = (*shape[:-1], 2 * shape[-1])
        if self.variance.learned:
            expected = doubled
            why = f"{type(self.variance).__name__} expects {expected} (a network with out_multiplier=2)"
        else:
            expected, why = shape, "they must be equal"
            if output.shape == doubled:
                why += ", unless the variance is LearnedRange(), which reads twice the channels"
        if output.shape != expected:
            raise ValueError(f"the network returned shape {output.shape} for data of shape {shape}; {why}")
        if not self.variance.learned:
            return output, None
        of_target, of_variance = jnp.split(output, 2, axis=-1)
        return of_target, of_variance

    def read(self, output: Batch, of_variance: Batch | None, z_t: Batch, t: Time) -> Prediction:
        """The prediction for an output at z_t, with x clipped as `clip` says.

        Args:
            output: the output for the target, as `output` returns it.
            of_variance: the output for the variance; None if it is not learned.
            z_t: float32 [batch, ...].
            t: [batch] or one for all; in 1..T for a chain.
        """
        x, eps, _ = self.target.decode(self.process, output, z_t, t)
        if not isinstance(self.clip, NoClipping):
            x = self.clip(x)
            eps = noise_between(self.process, z_t, x, t)
        return Prediction(x, eps, None if of_variance is None else (jnp.asarray(of_variance) + 1) / 2)

    def denoise(self, z_t: Batch, t: Time) -> Prediction:
        """The x and eps that the network predicts at z_t.

        Args:
            z_t: float32 [batch, ...].
            t: [batch] or one for all; in 1..T for a chain.

        Returns:
            (x, eps, var_fraction), each shaped like z_t; var_fraction is None if the variance is not learned.

        Raises:
            ValueError: as in `output`.
        """
        return self.read(*self.output(z_t, t), z_t, t)

    def normal(self, prediction: Prediction, z_t: Batch, step: Step) -> Normal:
        """p(z_s | z_t), given the prediction at z_t.

        Args:
            prediction: what `denoise` returned.
            z_t: float32 [batch, ...].
            step: the step t -> s, such as `process.step(t, s)`.

        Returns:
            The normal distribution of z_s.
        """
        step = step.like(z_t)
        var = self.variance(step, prediction.var_fraction)
        return Normal(mean=step.a * z_t + step.b * prediction.x, std=jnp.sqrt(var))

    def on(self, process: Process) -> "Denoiser":
        """The same network, read as the denoiser of another process: at each t it is called at its own t of equal SNR.

        Args:
            process: the other process.

        Returns:
            A denoiser of that process, with the target Edm(1), and without a learned variance.
        """
        check_process(process)
        require(
            "variance", self.variance, not self.variance.learned, "a fixed variance: a learned one is of its process"
        )
        predict = Translated(self.unclipped, process)
        return dataclasses.replace(self, predict=predict, process=process, target=predict.target)


@flax.struct.dataclass(eq=False)
class Translated:
    """predict(z_t, t) of `Denoiser.on`; a function and a pytree."""

    model: Denoiser
    process: Process
    target: Edm = flax.struct.field(pytree_node=False, default=Edm(1.0))

    def __call__(self, z_t: Batch, t: Time) -> Float[Array, "batch *dims"]:
        """The output for the target at z_t."""
        own, other = self.model.process, self.process
        own_t = own.time(other.log_snr(jnp.asarray(t)))
        # One number in two ways: each keeps its digits, and is finite, at one end.
        scales = own.signal(own_t) / other.signal(t), own.noise(own_t) / other.noise(t)
        scale = jnp.where(other.snr(t) > 1, *scales)
        x, eps, _ = self.model.denoise(per_example(scale, z_t) * z_t, own_t)
        return jnp.asarray(self.target.encode(other, x, eps, t))


def check_denoiser(model: Any, name: str = "model") -> None:
    """Raise ValueError unless `model` is a Denoiser."""
    require(name, model, isinstance(model, Denoiser), "a Denoiser(predict, process)")


def check_arguments(key: Any, model: Any, first_index: Any) -> None:
    """Raise ValueError unless these are a key, a Denoiser and the number of an example."""
    require_key(key)
    check_denoiser(model)
    check_first_index(first_index)
