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

EXPERIMENT = (FOLDER / "own.py").read_text()


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
