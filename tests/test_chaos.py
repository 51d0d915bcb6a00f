"""One run killed many times at random moments, by SIGKILL, SIGTERM and in the middle of a save, ends as if never.

Nine times; DDPM_JAX_KILLS=20 for a longer proof.
"""

import json
import os
import random
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import EXPERIMENT, finish, last_state, start, wait_until

KILLS = int(os.environ.get("DDPM_JAX_KILLS", "9"))
LONG = EXPERIMENT.replace(
    "num_steps=24, log_every=1, checkpoint_every=4",
    f"num_steps={80 * KILLS}, log_every=10, checkpoint_every=25, keep_last=2",
).replace("snapshot_every=3", f"snapshot_every={25 * KILLS}")


def with_network(name: str, code: str) -> str:
    """The long run of another network than the U-Net, which takes most of the time of a start."""
    text, times = re.subn(r"net=UNet\(.*\),\n", f"net={name}(),\n", LONG)
    assert times == 1
    return text.replace("experiment = Experiment(", f"{code}\nexperiment = Experiment(")


# Two convolutions with dropout: what is not linear amplifies any difference.
CONVOLUTIONS = with_network(
    "Convolutions",
    """
import jax
from ddpm_jax.nets import Network

@dataclass(frozen=True)
class Convolutions(Network):
    def init(self, key, image_shape):
        first, last, times = jax.random.split(key, 3)
        return {
            "first": 0.2 * jax.random.normal(first, (3, 3, 1, 16)),
            "last": 0.2 * jax.random.normal(last, (3, 3, 16, 1)),
            "times": 0.2 * jax.random.normal(times, (31, 16)),
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
""",
)
# Where devices come and go, rounding differs: a network that is linear in its parameters does not amplify it.
LINEAR = with_network(
    "Polynomial",
    """
import jax
from ddpm_jax.nets import Network

@dataclass(frozen=True)
class Polynomial(Network):
    def init(self, key, image_shape):
        return 0.1 * jax.random.normal(key, (31, 3))

    def bind(self, params):
        def predict(z_t, t):
            c = params[t][..., None, None, None]
            return c[:, 0] + c[:, 1] * z_t + c[:, 2] * z_t**2
        return predict
""",
)


def lines(workdir: Path) -> dict[int, float]:
    """The loss in each whole line of metrics, by its step; each step once."""
    path = workdir / "metrics.jsonl"
    whole = (
        [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []
    )
    entries = [json.loads(line) for line in whole]
    assert len({entry["step"] for entry in entries}) == len(entries)
    return {entry["step"]: entry["loss"] for entry in entries}


def harass(file: Path, workdir: Path, devices: list[int]) -> list[str]:
    """Start the run and kill it, again and again, each time on the next number of devices; how it was killed."""
    chance, done = random.Random(0), []
    while len(done) < KILLS:
        target = max(lines(workdir), default=0) + 10 * chance.randint(1, 3)  # so that all kills fit into the run
        process = start(file, workdir, devices[len(done) % len(devices)])
        wait_until(lambda target=target: max(lines(workdir), default=0) >= target, process)
        how = ("SIGKILL", "SIGTERM", "while saving")[len(done) % 3]
        if how == "while saving":
            wait_until(lambda: list((workdir / "checkpoints").glob("*tmp*")), process)
        else:
            time.sleep(chance.uniform(0, 0.05))
        assert process.poll() is None, f"it was over after {len(done)} kills"
        process.send_signal(signal.SIGTERM if how == "SIGTERM" else signal.SIGKILL)
        output, errors = process.communicate(timeout=120)
        assert process.returncode == (0 if how == "SIGTERM" else -signal.SIGKILL), (how, errors)
        assert how != "SIGTERM" or "stopped by SIGTERM after step" in output
        done.append(how)
    finish(start(file, workdir, devices[0]))
    return done


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "devices", "tolerance"),
    [(CONVOLUTIONS, [1], 0.0), (LINEAR, [1, 8], 1e-5)],
    ids=["bitwise", "one-or-eight"],
)
def test_a_run_killed_many_times(tmp_path, one, text, devices, tolerance):
    """The same parameters, averages and optimizer state, and the same lines of metrics, with no step by hand."""
    file, whole, broken = tmp_path / "chaos.py", tmp_path / "whole", tmp_path / "broken"
    file.write_text(text)
    finish(start(file, whole))
    harass(file, broken, devices)
    for ours, theirs in zip(last_state(broken, one), last_state(whole, one), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)
    ours, theirs = lines(broken), lines(whole)
    assert list(ours) == list(theirs)
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=0, atol=tolerance)
