"""What training changes from step to step: arrays only, so that it can be sharded, donated and saved.

Random keys are not among them: every draw is a function of (seed, step).
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """The state after `step` steps: an int32 scalar, and trees of arrays (or of their shapes, or shardings)."""

    step: Any
    params: Any
    ema_params: Any
    opt_state: Any
    timesteps: Any
    """What the rule for drawing timesteps remembers."""


def new_state(params: Any, optimizer: optax.GradientTransformation, timesteps: Any = ()) -> TrainState:
    """The state before the first step; the moving average starts at the parameters, so it has no bias."""
    ema_params = jax.tree.map(jnp.copy, params)  # buffers of its own: the step donates both
    return TrainState(jnp.zeros((), jnp.int32), params, ema_params, jax.jit(optimizer.init)(params), timesteps)
