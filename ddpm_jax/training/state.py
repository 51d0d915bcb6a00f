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
    """A tuple: one tree like `params` for each average that is kept."""
    opt_state: Any
    timesteps: Any
    """What the rule for drawing timesteps remembers."""


def new_state(
    params: Any, optimizer: optax.GradientTransformation, timesteps: Any = (), averages: int = 1
) -> TrainState:
    """The state before the first step; each of the averages starts at the parameters, so it has no bias."""

    @jax.jit  # one program rather than one for each shape
    def rest(params: Any) -> tuple[Any, Any]:
        # Buffers of their own: the step donates all of them.
        return tuple(jax.tree.map(jnp.copy, params) for _ in range(averages)), optimizer.init(params)

    ema_params, opt_state = rest(params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema_params, opt_state, timesteps)
