"""Writes tests/data/run-0.2, a small run that every later version must load, resume and sample.

    python tests/reference/make_run.py

The run has a network and a schedule that its experiment file defines, and stops after 4 of its 6 steps: the test
resumes it.  `expected.npz` holds its samples at step 4 and its parameters at step 6, from an uninterrupted training.
Run it again only for a change that no later version needs to read: the folder is the promise.
"""

import dataclasses
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType

import ddpm_jax
from ddpm_jax.data.images import to_pixels
from ddpm_jax.storage.classes import load_file

FOLDER = Path(__file__).parents[1] / "data" / "run-0.2"

EXPERIMENT = '''\
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
'''


def one_device():
    """The mesh of the run."""
    return jax.make_mesh((1, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:1])


def flat(params) -> dict[str, np.ndarray]:
    """The parameters of the network, as NumPy arrays."""
    return {name: np.asarray(value) for name, value in params.items()}


def main() -> None:
    """Train, and write the folder."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        file, run = Path(folder) / "own.py", Path(folder) / "run"
        file.write_text(EXPERIMENT)
        experiment = load_file(file).experiment
        ddpm_jax.train(experiment, run, one_device())
        shutil.copytree(run, FOLDER, ignore=shutil.ignore_patterns("lock", "tensorboard", "samples"))
        for path in FOLDER.rglob("commit_success.txt"):
            path.write_text(path.read_text().replace(folder, ""))  # the place on this machine
        longer = dataclasses.replace(experiment, num_steps=6)
        ddpm_jax.train(longer, Path(folder) / "longer", one_device())
        params = flat(ddpm_jax.load_run(Path(folder) / "longer", one_device()).params)
    x = ddpm_jax.load_run(FOLDER, one_device()).sample(jax.random.key(0), 4)
    np.savez_compressed(FOLDER / "expected.npz", samples=to_pixels(x), **params)
    print(
        f"{FOLDER}: {sum(path.stat().st_size for path in FOLDER.rglob('*') if path.is_file())} bytes", file=sys.stderr
    )


if __name__ == "__main__":
    main()
