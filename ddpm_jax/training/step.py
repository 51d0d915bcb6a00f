"""One step of training, as one compiled program: loss, gradient, update, averages.

The draws are made for the global batch from (seed, step), so any number of devices sees the same numbers.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ddpm_jax.data.images import random_flip, to_unit
from ddpm_jax.devices.compiler import compiler_options, sum_of_gradients, usual_promotion
from ddpm_jax.devices.mesh import by_example
from ddpm_jax.diffusion.arrays import Key, PerExample, stream
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.objective import Draws, Objective, SquaredError, draw_noise
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.targets import Eps, Target
from ddpm_jax.diffusion.timesteps import TimestepRule, UniformTimesteps
from ddpm_jax.diffusion.variance import FixedSmall, Variance
from ddpm_jax.nets.network import Network
from ddpm_jax.training.average import Averaging, Ema
from ddpm_jax.training.state import TrainState, new_state

Examples = tuple[dict[str, Array], Array, Draws, PerExample]  # the batch, x, draws, weights
Metrics = dict[str, Float[Array, "..."]]
TrainStep = Any  # (state, batch, seed key) to (state, metrics), jitted


@dataclass(frozen=True)
class Recipe:
    """All that a step is made of; `update` is the optimizer, built."""

    net: Network
    process: Process
    target: Target = Eps()
    variance: Variance = FixedSmall()
    objective: Objective = SquaredError()
    timesteps: TimestepRule = UniformTimesteps()
    update: optax.GradientTransformation = optax.adam(1e-3)
    ema: Averaging = Ema(0.999)
    flip: bool = False
    accumulate: int = 1

    def start(self, params: Any) -> TrainState:
        """The state before the first step."""
        remembered = self.timesteps.start(self.process)
        return new_state(params, self.update, remembered, len(self.ema.profiles))

    def model(self, params: Any, batch: dict[str, Array], key: Key) -> Denoiser:
        """The denoiser in training: with labels and a dropout key, if the network takes them.

        Args:
            params: the network's parameters.
            batch: the arrays of the batch, [batch, ...].
            key: the key of the step.
        """
        options = {}
        if self.net.num_classes is not None:
            options["labels"] = batch["label"]
        if self.net.is_random:
            options["dropout_key"] = stream(key, "dropout")
        if self.net.takes_process:
            options["process"] = self.process
        return Denoiser(self.net.bind(params, **options), self.process, self.target, self.variance)

    def losses(self, params: Any, batch: dict[str, Array], x: Array, draws: Draws, key: Key) -> Float[Array, " batch"]:
        """The loss of each example.

        Args:
            params: the network's parameters.
            batch: the arrays of the batch, [batch, ...].
            x: the data, float32 [batch, ...].
            draws: the times and the noise.
            key: the key of the step.
        """
        return self.objective(self.model(params, batch, key), x, draws)

    def gradient(self, params: Any, examples: Examples, key: Key) -> tuple[PerExample, Any]:
        """(losses, gradient of their weighted mean) of a batch.

        Args:
            params: the network's parameters.
            examples: the batch, x, the draws and their weights.
            key: the key of the step.
        """
        batch, x, draws, weight = examples

        def mean_loss(params: Any) -> tuple[Float[Array, ""], PerExample]:
            losses = self.losses(params, batch, x, draws, key)
            return jnp.mean(weight * losses), losses

        gradient, losses = jax.grad(mean_loss, has_aux=True)(params)
        return losses, gradient

    def accumulated_gradient(self, params: Any, examples: Examples, key: Key) -> tuple[PerExample, Any]:
        """`gradient` of a batch, in `accumulate` parts one after another, in the memory of one of them.

        Part j has the examples i = j modulo `accumulate`, so every device keeps the examples that it has.

        Args:
            params: the network's parameters.
            examples: the batch, x, the draws and their weights.
            key: the key of the step.
        """
        parts = self.accumulate
        cut = jax.tree.map(lambda array: jnp.moveaxis(array.reshape(-1, parts, *array.shape[1:]), 1, 0), examples)

        def gradient(params: Any, part: tuple[Examples, Array]) -> tuple[Any, PerExample]:
            losses, found = self.gradient(params, part[0], jax.random.fold_in(key, part[1]))
            return found, losses

        total, losses = sum_of_gradients(gradient, params, (cut, jnp.arange(parts)))
        return losses.T.reshape(-1), jax.tree.map(lambda gradient: gradient / parts, total)

    def step(
        self, state: TrainState, batch: dict[str, Array], seed_key: Key, placed: TrainState | None = None
    ) -> tuple[TrainState, Metrics]:
        """One step of training (Ho et al. 2020, algorithm 1).

        Args:
            state: the state before the step.
            batch: "image", uint8 images or float32 data, [batch, ...], and "label" if the network takes labels.
            seed_key: the key of the run; the draws are a function of it and the step.
            placed: the shardings of the state on a mesh; None for one device.  The parameters are gathered before they
                are used, and each device gets the part of the gradient that it updates.

        Returns:
            (the state after the step, its metrics).
        """
        key = jax.random.fold_in(stream(seed_key, "train"), state.step)
        x = batch["image"]
        x = to_unit(x) if x.dtype == jnp.uint8 else x
        if self.flip:
            x = random_flip(stream(key, "flip"), x)
        draws_key = stream(key, "draws")
        t, weight = self.timesteps.draw(stream(draws_key, "t"), state.timesteps, self.process, len(x))
        examples = batch, x, Draws(t, draw_noise(draws_key, x.shape)), weight

        take = self.gradient if self.accumulate == 1 else self.accumulated_gradient
        if placed is None:
            losses, gradient = take(state.params, examples, key)
        else:
            place = jax.lax.with_sharding_constraint
            losses, gradient = take(place(state.params, placed.step), examples, key)
            # Whole, then cut: else the compiler would carry the cut into the network, and move activations.
            gradient = place(place(gradient, placed.step), placed.params)
        step = state.step + 1
        with usual_promotion():
            updates, opt_state = self.update.update(gradient, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            averages = self.ema.update(state.ema_params, params, step)
        timesteps = self.timesteps.update(state.timesteps, self.process, t, losses)
        return TrainState(step, params, averages, opt_state, timesteps), {
            "loss": jnp.mean(weight * losses),
            "gradient_norm": optax.tree.norm(gradient),
            "parameter_norm": optax.tree.norm(params),
            **by_quarter(losses, self.process.share(t)),
        }


def by_quarter(losses: PerExample, share: PerExample) -> dict[str, Float[Array, " 4"]]:
    """The sum of the losses, and their number, in each quarter of the times; share: from 0, clean, to 1."""
    quarter = jax.nn.one_hot(jnp.minimum(jnp.floor(4 * share), 3).astype(jnp.int32), 4, dtype=jnp.float32)
    return {"quarter_sum": jnp.sum(losses[:, None] * quarter, 0), "quarter_count": jnp.sum(quarter, 0)}


def compile_step(recipe: Recipe, placed: TrainState, donate: bool = True) -> TrainStep:
    """`recipe.step` for arrays on a mesh: the batch cut by example, the state as `placed`.

    placed: a sharding for each array of the state.  donate: the state's buffers are used again, so that it is in
    memory once.
    """
    whole = placed.step
    return jax.jit(
        partial(recipe.step, placed=placed),
        in_shardings=(placed, by_example(whole.mesh), whole),
        out_shardings=(placed, whole),
        donate_argnums=(0,) if donate else (),
        compiler_options=compiler_options(whole.mesh.devices.flat[0].platform),
    )
