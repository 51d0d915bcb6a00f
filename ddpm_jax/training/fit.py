"""Training in one call, for small networks and data that are drawn or in memory; no run folder, nothing is saved.

    mixture = Mixture.of([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], 0.1)
    state, losses = fit(key, Recipe(Mlp(), schedule), lambda key: mixture.sample(key, 256), num_steps=2000)
    predict = Mlp().bind(state.ema_params[0])

For runs that are logged, saved and resumed there is `ddpm_jax.train`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.diffusion.arrays import Batch, Key, Whole, stream
from ddpm_jax.errors import require, require_int, require_key
from ddpm_jax.training.state import TrainState
from ddpm_jax.training.step import Recipe


def fit(
    key: Key, recipe: Recipe, draw_x: Callable[[Key], Batch], num_steps: Whole, state: TrainState | None = None
) -> tuple[TrainState, Float[Array, " num_steps"]]:
    """Train in one call, as one compiled program: a loop on the device.

    On CPUs the gradients of convolutions are about 20 times slower inside a loop.  A U-Net is better trained there by
    calling jax.jit(recipe.step) step by step.

    Args:
        key: the key; the draws of a step are a function of (key, step).
        recipe: the parts of a step.
        draw_x: a function of a key that returns a batch, float32 [batch, ...].  It is traced, so its shapes are fixed.
        num_steps: the number of steps.
        state: the state to start from; None for fresh parameters.

    Returns:
        (the state after the last step, the loss of each step).

    Raises:
        ValueError: an argument has the wrong type, or num_steps is less than 1.
    """
    require_key(key)
    require("recipe", recipe, isinstance(recipe, Recipe), "a Recipe, such as Recipe(Mlp(), schedule)")
    require("draw_x", draw_x, callable(draw_x), "a function of a key that returns a batch x")
    num_steps = require_int("num_steps", num_steps, 1)
    if state is None:
        shape = jax.eval_shape(draw_x, key).shape
        state = recipe.start(recipe.net.init(stream(key, "params"), shape[1:]))
    return _fit(recipe, draw_x, num_steps)(key, state)


def _fit(recipe: Recipe, draw_x: Callable[[Key], Batch], num_steps: int) -> Callable[[Key, TrainState], Any]:
    """The whole training, compiled."""

    @jax.jit
    def run(key: Key, state: TrainState) -> tuple[TrainState, Array]:
        def step(state: TrainState, _: None) -> tuple[TrainState, Array]:
            x = jnp.asarray(draw_x(jax.random.fold_in(stream(key, "data"), state.step)))
            state, metrics = recipe.step(state, {"image": x}, key)
            return state, metrics["loss"]

        return jax.lax.scan(step, state, length=num_steps)

    return run
