"""A run that version 0.2 wrote loads, resumes and samples: the promise to every run since.

`tests/reference/make_run.py` wrote the folder.  If a test here fails, the change breaks the runs of users: make the
new code read them, and leave the folder as it is.
"""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from reference.make_run import EXPERIMENT, FOLDER, flat

from ddpm_jax import load_run, train
from ddpm_jax.data.images import to_pixels
from ddpm_jax.storage import specs

# Another CPU or version of XLA rounds differently; a step changes a parameter by up to the learning rate, 1e-2.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def expected():
    return dict(np.load(FOLDER / "expected.npz"))


@pytest.fixture
def run(tmp_path):
    """A copy, as a training writes to it."""
    shutil.copytree(FOLDER, tmp_path / "run")
    return tmp_path / "run"


def test_it_loads(one):
    found = load_run(FOLDER, one)
    assert (found.step, found.image_shape, found.ema) == (4, (8, 8, 1), 0.5)
    assert (FOLDER / "own.py").read_text() == EXPERIMENT
    assert type(found.experiment.net).__name__ == "Convolutions"
    assert type(found.experiment.schedule).__name__ == "Constant"


def test_its_experiment_is_written_as_it_was(one):
    """So the names of classes and fields have not changed, or a new field has a default."""
    written = json.loads((FOLDER / "experiment.json").read_text())
    again = specs.encode(specs.load(FOLDER / "experiment.json"))
    assert {name: again[name] for name in written} == written


def test_it_samples_the_same_images(one, expected):
    found = to_pixels(load_run(FOLDER, one).sample(jax.random.key(0), 4))
    assert np.ptp(found.astype(int)) > 50
    assert np.abs(found.astype(int) - expected["samples"].astype(int)).max() <= 1


@pytest.mark.usefixtures("no_pictures")
def test_it_resumes_as_if_never_interrupted(run, one, expected, tmp_path):
    """Bitwise among trainings on this machine, and to a tolerance with the committed numbers."""
    experiment = specs.load(run / "experiment.json")

    def parameters_at_6(folder, *stops):
        for num_steps in (*stops, 6):
            train(dataclasses.replace(experiment, num_steps=num_steps), folder, one)
        return flat(load_run(folder, one).params)

    before = flat(load_run(run, one).params)
    resumed = parameters_at_6(run)
    shutil.copytree(FOLDER, tmp_path / "twice")
    pairs = [
        (resumed, parameters_at_6(tmp_path / "twice", 5)),  # both start from the committed state
        (parameters_at_6(tmp_path / "uninterrupted"), parameters_at_6(tmp_path / "interrupted", 4)),
    ]
    for ours, theirs in pairs:
        for name, values in ours.items():
            np.testing.assert_array_equal(values, theirs[name])
            np.testing.assert_allclose(values, expected[name], rtol=0, atol=TOLERANCE)
            assert np.abs(values - before[name]).max() > 100 * TOLERANCE
    for folder in (run, tmp_path / "twice"):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
