"""A run killed with SIGKILL and started again ends as if nothing had happened: bitwise the same arrays.

Real processes, killed while they train and while they save.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import QUICK

from ddpm_jax.storage import specs
from ddpm_jax.storage.checkpoint import Checkpoints
from ddpm_jax.training.resume import as_trees
from ddpm_jax.training.snapshots import as_items

EXPERIMENT = """
from dataclasses import dataclass
import numpy as np
from ddpm_jax.data import Digits
from ddpm_jax.training.experiment import Experiment
from ddpm_jax.cli.main import launch
from ddpm_jax.nets.unet import UNet
from ddpm_jax.sampling import Ddim
from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.training.average import PowerEma
from ddpm_jax.training.optimizer import Adam

@dataclass(frozen=True)
class Constant(Schedule):
    num_steps: int = 30
    def betas(self):
        return np.full(self.num_steps, 0.1)

experiment = Experiment(
    name="killed", data=Digits(), schedule=Constant(), sampler=Ddim(num_steps=2), flip=True, batch_size=16,
    net=UNet(channels=8, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=(), dropout=0.1),
    optimizer=Adam(learning_rate=1e-3, warmup_steps=3, decay="cosine"),
    ema=PowerEma(snapshot_every=3),
    num_steps=24, log_every=1, checkpoint_every=4, sample_every=1000, num_samples=4,
)
if __name__ == "__main__":
    launch(experiment)
"""


def start(file: Path, workdir: Path, devices: int = 1) -> subprocess.Popen:
    """The training in a process of its own."""
    flags = f"{QUICK} --xla_force_host_platform_device_count={devices}"
    return process([str(file), "--workdir", str(workdir)], flags)


def process(arguments: list[str], flags: str) -> subprocess.Popen:
    """Python with these arguments, its output kept."""
    command, pipe = [sys.executable, *arguments], subprocess.PIPE
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def wait_until(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < limit
        time.sleep(0.002)


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors


def logged(workdir: Path) -> list[int]:
    path = workdir / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def last_state(workdir: Path, one) -> list[np.ndarray]:
    experiment = specs.load(workdir / "experiment.json")
    shapes = experiment.plan(one).state
    checkpoints = Checkpoints(workdir / "checkpoints")
    step, trees = checkpoints.restore_newest(lambda about: as_trees(shapes), report=pytest.fail)
    checkpoints.close()
    assert step == experiment.num_steps
    return [np.asarray(leaf) for leaf in jax.tree.leaves({name: trees[name] for name in ("training", "ema", "ema_1")})]


def snapshots(workdir: Path, one) -> dict[int, list[np.ndarray]]:
    """The averages in each snapshot, by its step."""
    experiment = specs.load(workdir / "experiment.json")
    shapes = experiment.plan(one).state.params
    store = Checkpoints(workdir / "snapshots")
    like = as_items((shapes, shapes))
    trees = {step: store.restore(step, lambda about: like) for step in store.steps()}
    store.close()
    return {step: [np.asarray(leaf) for name in like for leaf in jax.tree.leaves(trees[step][name])] for step in trees}


@pytest.mark.slow
def test_killed_and_started_again_is_bitwise_the_same(tmp_path, one):
    file, whole, broken = tmp_path / "killed.py", tmp_path / "whole", tmp_path / "broken"
    file.write_text(EXPERIMENT)
    unbroken = start(file, whole)

    process = start(file, broken)  # killed in the middle of training, between two checkpoints
    wait_until(lambda: len(logged(broken)) >= 6, process)
    process.send_signal(signal.SIGKILL)
    process.wait()

    reached = len(logged(broken))
    process = start(file, broken)  # killed while a checkpoint is being written
    wait_until(lambda: len(logged(broken)) > reached and list((broken / "checkpoints").glob("*tmp*")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()

    finish(start(file, broken))
    finish(unbroken)
    for ours, theirs in zip(last_state(broken, one), last_state(whole, one), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    ours, theirs = snapshots(broken, one), snapshots(whole, one)
    assert sorted(ours) == sorted(theirs) == list(range(3, 25, 3))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert logged(broken) == logged(whole) == list(range(1, 25))
    assert (broken / "samples" / "00000024.png").exists()


FEATURES = """
def flat(images):
    return images.reshape(len(images), -1)[:, ::7] / 255
"""


@pytest.mark.slow
def test_an_evaluation_that_was_killed_reports_what_it_would_have(tmp_path, finished, monkeypatch):
    (tmp_path / "features.py").write_text(FEATURES)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def evaluation(folder: Path) -> subprocess.Popen:
        if not folder.exists():
            shutil.copytree(finished, folder)
        how = f"--num-samples 96 --batch-size 16 --features {tmp_path}/features.py:flat --bound-terms 2"
        arguments = ["-m", "ddpm_jax", "evaluate", str(folder), *how.split()]
        return process(arguments, QUICK)

    whole, broken = tmp_path / "whole", tmp_path / "broken"

    def reached(running: subprocess.Popen, pattern: str) -> bool:
        return bool(list((broken / "evaluations").glob(pattern))) or running.poll() == 0

    finish(evaluation(whole))
    for pattern in ("bits-*/*", "samples-*/images/*16-*", "samples-*/images/*64-*", "samples-*/f*/features/*"):
        killed = evaluation(broken)
        wait_until(partial(reached, killed, pattern), killed)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    finish(evaluation(broken))
    [expected], [found] = (list(folder.glob("evaluations/*/report.json")) for folder in (whole, broken))
    assert found.read_bytes() == expected.read_bytes()
    assert found.with_suffix(".html").read_bytes() == expected.with_suffix(".html").read_bytes()
