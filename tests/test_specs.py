"""Experiments to JSON and back, unchanged; everything that is wrong in a JSON is named."""

import dataclasses
import json
from pathlib import Path

import pytest

from ddpm_jax.cli.train import read_experiment
from ddpm_jax.diffusion.schedule import Betas, Cosine, Linear
from ddpm_jax.storage import specs
from ddpm_jax.training.resume import conflicts

EXPERIMENTS = sorted((Path(__file__).parents[1] / "experiments").glob("*.py"))

OWN_CLASS = '''
import dataclasses
from dataclasses import dataclass
import numpy as np
from ddpm_jax.data import Digits
from ddpm_jax.training.experiment import Experiment
from ddpm_jax.nets.unet import UNet
from ddpm_jax.diffusion.schedule import Schedule

@dataclass(frozen=True)
class Constant(Schedule):
    """The same beta in every step."""
    num_steps: int = 30
    beta: float = 0.1
    def betas(self):
        return np.full(self.num_steps, self.beta)

experiment = Experiment(name="own", data=Digits(), net=UNet(channels=8), schedule=Constant(beta=0.2))
'''


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_survives_json(path, tmp_path):
    experiment = read_experiment(path)
    specs.save(experiment, tmp_path / "experiment.json")
    again = specs.load(tmp_path / "experiment.json")
    assert again == experiment
    assert specs.encode(again) == specs.encode(experiment)
    assert conflicts(experiment, again) == []


def test_a_class_of_the_experiment_file_travels_with_the_run(tmp_path):
    """The file is copied beside the JSON, so the run can be read where the original is gone."""
    source, run = tmp_path / "own.py", tmp_path / "run"
    source.write_text(OWN_CLASS)
    experiment = read_experiment(source)
    run.mkdir()
    specs.save(experiment, run / "experiment.json")
    source.unlink()
    again = specs.load(run / "experiment.json")
    assert again == experiment
    assert json.loads((run / "experiment.json").read_text())["schedule"]["class"] == "own.py:Constant"
    assert float(again.schedule.build().beta[1]) == pytest.approx(0.2)


def test_changed_code_of_a_class_is_a_conflict(tmp_path):
    """The fields are equal, but the schedule is another one."""
    found = []
    for folder, factor in (("there", "self.beta"), ("here", "2 * self.beta")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.py").write_text(
            OWN_CLASS.replace("self.num_steps, self.beta", f"self.num_steps, {factor}")
        )
        found.append(read_experiment(tmp_path / folder / "own.py"))
    assert conflicts(*found) == ["schedule: the code of own.py:Constant has changed"]


def test_a_file_that_no_longer_runs_is_named(tmp_path):
    (tmp_path / "own.py").write_text(OWN_CLASS)
    specs.save(read_experiment(tmp_path / "own.py"), tmp_path / "experiment.json")
    (tmp_path / "own.py").write_text("def (")
    with pytest.raises(specs.SpecError, match=r"class 'own.py:Constant' cannot be loaded \(SyntaxError"):
        specs.load(tmp_path / "experiment.json")


def test_betas_survive_json_exactly(tmp_path):
    spec = Betas(Linear(num_steps=7).betas())
    specs.save(spec, tmp_path / "betas.json")
    assert specs.load(tmp_path / "betas.json") == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.update(batchsize=3), "batchsize: Experiment has no such field; it has name, data"),
        (lambda value: value.update(batch_size="3"), "batch_size is '3'; expected int"),
        (lambda value: value.update(batch_size=True), "batch_size is True; expected int"),
        (lambda value: value.update(batch_size=0), "batch_size is 0; expected at least 1"),
        (lambda value: value["net"].update(dtype="float64"), "net.dtype is 'float64'; expected Literal"),
        (lambda value: value["net"].update(channel_multipliers=[1, "2"]), "net.channel_multipliers is (1, '2')"),
        (lambda value: value["net"].update(dropout=1.5), "net: dropout is 1.5; expected 0 or more, less than 1"),
        (lambda value: value["net"].pop("class"), "net has no field 'class'"),
        (lambda value: value["net"].update({"class": "ddpm_jax.nets.unet:Unet"}), "class 'ddpm_jax.nets.unet:Unet'"),
        (lambda value: value["net"].update({"class": "os:system"}), "net: 'os:system' is not a dataclass"),
        (lambda value: value["net"].update({"class": "gone.py:Net"}), "class 'gone.py:Net' cannot be loaded"),
        (lambda value: value.update(target=value["net"]), "target is UNet"),
        (lambda value: value.pop("data"), "data is missing"),
    ],
)
def test_what_is_wrong_in_a_json_is_named(tiny, tmp_path, change, message):
    value = specs.encode(tiny)
    change(value)
    path = tmp_path / "experiment.json"
    path.write_text(json.dumps(value))
    with pytest.raises(specs.SpecError) as error:
        specs.load(path)
    assert message in str(error.value)


def test_a_whole_number_is_a_float(tiny, tmp_path):
    value = specs.encode(tiny)
    value["optimizer"]["learning_rate"] = 1
    (tmp_path / "experiment.json").write_text(json.dumps(value))
    assert specs.load(tmp_path / "experiment.json").optimizer.learning_rate == 1.0


def test_not_json(tmp_path):
    (tmp_path / "experiment.json").write_text("{")
    with pytest.raises(specs.SpecError, match="is not JSON"):
        specs.load(tmp_path / "experiment.json")


def test_what_a_spec_cannot_hold_is_named():
    held = dataclasses.make_dataclass("Held", ["values"], frozen=True)
    with pytest.raises(specs.SpecError, match=r"values\[0\] is a set; a spec holds numbers"):
        specs.encode(held(({1, 2},)))


def test_conflicts_name_the_fields(tiny):
    other = dataclasses.replace(
        tiny, net=dataclasses.replace(tiny.net, channels=16), schedule=Cosine(num_steps=30), num_steps=12, log_every=1
    )
    assert conflicts(tiny, other) == ["net.channels: 8 there, 16 here", "schedule.num_steps: 20 there, 30 here"]
    assert conflicts(tiny, dataclasses.replace(tiny, schedule=Linear(num_steps=20)))[0].startswith(
        "schedule: Cosine there"
    )


def test_the_length_is_fixed_where_the_learning_rate_follows_it(tiny):
    decaying = dataclasses.replace(tiny, optimizer=dataclasses.replace(tiny.optimizer, decay="cosine"))
    assert conflicts(decaying, dataclasses.replace(decaying, num_steps=7)) == ["num_steps: 6 there, 7 here"]
