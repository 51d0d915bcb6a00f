"""A process and a target of a user's own, in an experiment file: trained, resumed, sampled and evaluated."""

import dataclasses

import jax
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.cli import main
from ddpm_jax.storage.classes import load_file

pytestmark = pytest.mark.slow  # two trainings and two evaluations

FILE = """
from dataclasses import dataclass

import jax.numpy as jnp

from ddpm_jax import Experiment, average, clipping, data, launch, nets, optimizer, process, sampling, targets


@dataclass(frozen=True)
class Circular(process.Continuous):
    first: float = 0.001
    last: float = 0.999

    def signal(self, t):
        return jnp.cos(jnp.pi / 2 * t)

    def noise(self, t):
        return jnp.sin(jnp.pi / 2 * t)


@dataclass(frozen=True)
class Tilted(targets.Target):
    def pair(self, process, t):
        return -0.5 * process.noise(t), process.signal(t)


experiment = Experiment(
    name="own", data=data.Digits(), net=nets.Mlp(width=16, depth=1), schedule=Circular(), target=Tilted(),
    sampler=sampling.UniPc(num_steps=5), clip=clipping.Clip(), ema=average.Ema(0.5, warmup=False),
    optimizer=optimizer.Adam(warmup_steps=1), batch_size=8, num_steps=6, log_every=1, checkpoint_every=3, num_samples=4,
)

if __name__ == "__main__":
    launch(experiment)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(the run in one go, the run in two)."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.py").write_text(FILE)
    experiment = load_file(folder / "own.py").experiment
    ddpm_jax.train(experiment, folder / "whole")
    ddpm_jax.train(dataclasses.replace(experiment, num_steps=3), folder / "parts")
    ddpm_jax.train(experiment, folder / "parts")
    return ddpm_jax.load_run(folder / "whole"), ddpm_jax.load_run(folder / "parts"), folder


def test_it_resumes_as_if_never_interrupted(runs):
    whole, parts, _ = runs
    assert whole.step == parts.step == 6
    jax.tree.map(np.testing.assert_array_equal, whole.params, parts.params)
    assert type(whole.experiment.schedule).__name__ == "Circular"


def test_it_is_sampled_and_has_a_bound(runs):
    """The bound of infinitely many steps, which is the default, and that of five."""
    run, _, _ = runs
    x = run.sample(jax.random.key(0), 8)
    assert x.shape == (8, 8, 8, 1)
    assert np.isfinite(x).all()
    digits = ddpm_jax.data.Digits("test")
    source = [digits[i] for i in range(16)]
    limit, few = (run.bits_per_dim(jax.random.key(1), source, **terms) for terms in ({}, {"num_steps": 5}))
    print(f"limit {limit.mean():.2f}, five steps {few.mean():.2f}")
    assert 1 < limit.mean() < 20
    assert 1 < few.mean() < 20


def test_the_commands_take_it(runs, tmp_path, capsys):
    _, _, folder = runs
    main.main(
        ["sample", str(folder / "whole"), "--num-images", "4", "--steps", "3", "--output", str(tmp_path / "x.npz")]
    )
    assert np.load(tmp_path / "x.npz")["images"].shape == (4, 8, 8, 1)
    for options in (["--bound-terms", "4"], []):
        main.main(["evaluate", str(folder / "whole"), "--metrics", "bpd", *options])
        assert "bits/dim" in capsys.readouterr().out
