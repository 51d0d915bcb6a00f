"""Experiments to JSON and back, unchanged; everything that is wrong in a JSON is named."""

import dataclasses
import importlib
import json
import pkgutil
import sys
import typing
from pathlib import Path

import pytest

import ddpm_jax
from ddpm_jax.cli.train import read_experiment
from ddpm_jax.data import Source
from ddpm_jax.data.source import Subset
from ddpm_jax.data.sources import InMemory, StandIn
from ddpm_jax.devices.cluster import Seat
from ddpm_jax.devices.mesh import MeshShape
from ddpm_jax.diffusion.objective import Hybrid, SquaredError
from ddpm_jax.diffusion.process import Continuous
from ddpm_jax.diffusion.schedule import Betas, Cosine, Linear, Schedule
from ddpm_jax.diffusion.timesteps import TimestepRule
from ddpm_jax.diffusion.variance import LearnedRange
from ddpm_jax.diffusion.weighting import Weighting
from ddpm_jax.evaluation.reference import Images
from ddpm_jax.nets import Network
from ddpm_jax.sampling import Ancestral, Ddim, Grid, Sampler
from ddpm_jax.storage import specs
from ddpm_jax.storage.classes import class_name, find_class
from ddpm_jax.training.average import Averaging
from ddpm_jax.training.experiment import Experiment
from ddpm_jax.training.optimizer import Optimizer
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
        (
            lambda value: value["net"].update({"class": "nets:Unet"}),
            "class 'nets:Unet' cannot be loaded (AttributeError",
        ),
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


def test_public_names_are_written(tiny):
    """No name of a folder or a file inside the package, so that these may change."""
    value = specs.encode(tiny)
    parts = ("schedule", "sampler", "net", "data", "optimizer", "mesh", "ema", "timesteps")
    assert value["class"] == "Experiment"
    assert [value[part]["class"] for part in parts] == [
        *("schedule:Cosine", "sampling:Ddim", "nets:UNet", "data:Digits", "optimizer:Adam", "mesh:MeshShape"),
        *("average:Ema", "timesteps:UniformTimesteps"),
    ]


# Classes with the methods of a source: two bases without examples, and two views of a source that is being read.
NOT_HELD = {InMemory, StandIn, Images, Subset}


def classes_of_the_package() -> set[type]:
    """All dataclasses that the modules of the package define, but not those with a private name."""
    found: set[type] = set()
    for info in pkgutil.walk_packages(ddpm_jax.__path__, "ddpm_jax."):
        if info.name != "ddpm_jax.__main__":
            values = vars(importlib.import_module(info.name)).values()
            found |= {value for value in values if isinstance(value, type) and value.__module__ == info.name}
    return {cls for cls in found if dataclasses.is_dataclass(cls) and not cls.__name__.startswith("_")}


def kinds_in(spec) -> set[type]:
    """The classes and protocols that a field of an experiment, or of one of its parts, may hold."""
    found = set()
    for field in dataclasses.fields(spec):
        hint, value = typing.get_type_hints(type(spec))[field.name], getattr(spec, field.name)
        found |= {hint} if isinstance(hint, type) and hint.__module__.startswith("ddpm_jax.") else set()
        found |= kinds_in(value) if dataclasses.is_dataclass(value) else set()
    return found


def is_a(cls: type, kind: type) -> bool:
    if not getattr(kind, "_is_protocol", False):
        return issubclass(cls, kind)
    asked = [name for name in vars(kind) if not name.startswith("_") or name in ("__len__", "__getitem__")]
    return bool(asked) and all(hasattr(cls, name) for name in asked)


def test_every_class_that_an_experiment_may_hold_has_a_public_name(tiny):
    """It is found again by that name."""
    held = dataclasses.replace(tiny, sampler=Ancestral(), objective=Hybrid(), variance=LearnedRange())
    kinds = (
        {Experiment, Source, Network, Optimizer, Schedule, Continuous}
        | kinds_in(held)
        | kinds_in(Ddim())
        | kinds_in(SquaredError())
    )
    assert {Optimizer, Grid, Sampler, Schedule, Weighting, Averaging, TimestepRule, MeshShape} <= kinds
    specs_of_the_package = {
        cls for cls in classes_of_the_package() - NOT_HELD if any(is_a(cls, kind) for kind in kinds)
    }
    names = {class_name(cls): cls for cls in specs_of_the_package}
    assert len(names) == len(specs_of_the_package) >= 45
    for name, cls in names.items():
        assert find_class(name, Path(), "") is cls
        assert "." not in name


def test_a_class_without_a_public_name_is_refused():
    with pytest.raises(specs.SpecError, match="class Seat is private to ddpm_jax"):
        specs.encode(Seat())


def test_a_module_of_the_user_may_have_the_name_of_a_public_one(tmp_path, monkeypatch):
    """nets.py beside an experiment is not ddpm_jax.nets."""
    code = "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass UNet:\n    width: int\n"
    (tmp_path / "nets.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "nets", None)  # removed again after the test
    del sys.modules["nets"]
    theirs = importlib.import_module("nets")
    specs.save(theirs.UNet(3), tmp_path / "spec.json")
    assert specs.load(tmp_path / "spec.json") == theirs.UNet(3)
