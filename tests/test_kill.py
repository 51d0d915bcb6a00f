"""A run killed with SIGKILL and started again ends as if nothing had happened: bitwise the same arrays.

Real processes, killed while they train and while they save.
"""

import shutil
import signal
import subprocess
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import EXPERIMENT, QUICK, finish, last_state, logged, process, start, wait_until

from ddpm_jax.storage import specs
from ddpm_jax.storage.checkpoint import Checkpoints
from ddpm_jax.training.snapshots import as_items


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
