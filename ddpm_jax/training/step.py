"""One step of training, as one compiled program: loss, gradient, update, averages.

The draws are made for the global batch from (seed, step), so any number of devices sees the same numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from ddpm_jax.arrays import Key, stream
from ddpm_jax.data.images import random_flip, to_unit
from ddpm_jax.decoder import Decoder
from ddpm_jax.objective import Draws, Objective, draw_noise
from ddpm_jax.schedule import NoiseSchedule
from ddpm_jax.targets import Target
from ddpm_jax.timesteps import TimestepRule
from ddpm_jax.training.average import Averaging
from ddpm_jax.training.mesh import by_example, replicated
from ddpm_jax.training.state import TrainState
from ddpm_jax.variance import Variance

Metrics = dict[str, Float[Array, ""]]
TrainStep = Callable[[TrainState, dict[str, Any], Key], tuple[TrainState, Metrics]]


@dataclass(frozen=True)
class Recipe:
    """All that a step is made of; `update` is the optimizer, built."""

    net: Any
    schedule: NoiseSchedule
    target: Target
    variance: Variance
    objective: Objective
    timesteps: TimestepRule
    update: optax.GradientTransformation
    ema: Averaging
    flip: bool

    def bind(self, params: Any, batch: dict[str, Array], key: Key) -> Callable[[Array, Array], Array]:
        """predict(z_t, t) in training: with labels where the network takes them, with dropout where it has it."""
        options = {}
        if getattr(self.net, "num_classes", None):
            options["labels"] = batch["label"]
        if getattr(self.net, "dropout", 0) or getattr(self.net, "label_dropout", 0):
            options["dropout_key"] = stream(key, "dropout")
        return self.net.bind(params, **options)

    def losses(self, params: Any, batch: dict[str, Array], x: Array, draws: Draws, key: Key) -> Float[Array, " batch"]:
        """The loss of each example."""
        predict: Any = self.bind(params, batch, key)
        return self.objective(Decoder(predict, self.schedule, self.target, self.variance), x, draws)

    def step(self, state: TrainState, batch: dict[str, Array], seed_key: Key) -> tuple[TrainState, Metrics]:
        """The state after one more step on a batch of uint8 images, and what happened in it."""
        key = jax.random.fold_in(stream(seed_key, "train"), state.step)
        x = to_unit(batch["image"])
        if self.flip:
            x = random_flip(stream(key, "flip"), x)
        draws_key = stream(key, "draws")
        t, weight = self.timesteps.draw(stream(draws_key, "t"), state.timesteps, self.schedule.num_steps, len(x))
        draws = Draws(t, draw_noise(draws_key, x.shape))

        def mean_loss(params: Any) -> tuple[Float[Array, ""], Float[Array, " batch"]]:
            losses = self.losses(params, batch, x, draws, key)
            return jnp.mean(weight * losses), losses

        (value, losses), gradient = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        updates, opt_state = self.update.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        averages = self.ema.update(state.ema_params, params, step)
        timesteps = self.timesteps.update(state.timesteps, t, losses)
        return TrainState(step, params, averages, opt_state, timesteps), {
            "loss": value,
            "gradient_norm": optax.tree.norm(gradient),
        }


def compile_step(recipe: Recipe, mesh: Mesh) -> TrainStep:
    """`recipe.step` for arrays on the mesh: the batch cut by example, all else replicated, the state donated."""
    whole, slices = replicated(mesh), by_example(mesh)
    return jax.jit(recipe.step, in_shardings=(whole, slices, whole), out_shardings=(whole, whole), donate_argnums=0)
