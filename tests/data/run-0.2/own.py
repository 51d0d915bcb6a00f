"""The experiment of a run that every later version must load: its network and its schedule are defined here."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from ddpm_jax import Experiment, average, clipping, optimizer, sampling, schedule
from ddpm_jax.data import Digits
from ddpm_jax.nets import Network


@dataclass(frozen=True)
class Constant(schedule.Schedule):
    """The same beta in every step."""

    num_steps: int = 20
    beta: float = 0.25

    def betas(self):
        return np.full(self.num_steps, self.beta)


@dataclass(frozen=True)
class Convolutions(Network):
    """Two convolutions, with dropout between them."""

    width: int = 4

    @property
    def is_random(self):
        return True

    def init(self, key, shape):
        first, last = jax.random.split(key)
        return {
            "first": 0.2 * jax.random.normal(first, (3, 3, shape[-1], self.width)),
            "last": 0.2 * jax.random.normal(last, (3, 3, self.width, shape[-1])),
            "times": jnp.zeros((64, self.width)),
        }

    def bind(self, params, dropout_key=None):
        def conv(h, name):
            layout = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(h, params[name], (1, 1), "SAME", dimension_numbers=layout)

        def predict(z_t, t):
            h = jax.nn.silu(conv(z_t, "first") + params["times"][t][:, None, None])
            if dropout_key is not None:
                h = h * jax.random.bernoulli(dropout_key, 0.9, h.shape)
            return conv(h, "last")

        return predict


experiment = Experiment(
    name="run-0.2",
    data=Digits(),
    net=Convolutions(),
    schedule=Constant(),
    optimizer=optimizer.Adam(learning_rate=0.01, warmup_steps=2),
    ema=average.Ema(decay=0.5),
    sampler=sampling.Ddim(num_steps=5),
    clip=clipping.Clip(),
    flip=True,
    batch_size=16,
    num_steps=4,
    log_every=1,
    checkpoint_every=2,
    keep_last=1,
    sample_every=100,
    num_samples=4,
)
