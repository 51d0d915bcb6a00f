"""The command line, as a person meets it: quick, and one clear message for whatever is wrong."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from test_kill import EXPERIMENT

from ddpm_jax import launch, specs
from ddpm_jax.commands.train import read_experiment
from ddpm_jax.data import Tfds
from ddpm_jax.dryrun import step_flops

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
HEAVY = ["tensorflow", "torch", "tensorflow_datasets", "grain", "orbax", "sklearn", "matplotlib", "PIL", "optax"]


def modules_after(statement: str) -> set[str]:
    """The modules that a fresh process has imported after a statement."""
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return {name.split(".")[0] for name in output.split("\n")}


def test_importing_the_library_is_light():
    assert modules_after("import ddpm_jax").isdisjoint([*HEAVY, "jax", "flax"])
    assert modules_after("from ddpm_jax import objective, sampling; import ddpm_jax.nets.unet").isdisjoint(
        {"tensorflow", "torch", "tensorflow_datasets", "grain", "orbax", "sklearn", "matplotlib"}
    )


def test_help_is_light():
    assert modules_after("from ddpm_jax.launch import main\nmain(['--help'])").isdisjoint([*HEAVY, "jax", "flax"])


def test_a_whole_experiment_never_imports_tensorflow_or_torch():
    code = "import ddpm_jax.training.loop, ddpm_jax.commands.sample, ddpm_jax.commands.prepare, ddpm_jax.dryrun"
    assert modules_after(code).isdisjoint({"tensorflow", "torch"})


@pytest.fixture(scope="module")
def experiment_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiment") / "own.py"
    path.write_text(EXPERIMENT)
    return path


def fails(capsys, *arguments: str) -> str:
    """What a command prints to stderr, having ended with status 2."""
    with pytest.raises(SystemExit) as stop:
        launch.main(list(map(str, arguments)))
    assert stop.value.code == 2
    printed = capsys.readouterr()
    text = printed.err + printed.out
    assert "Traceback" not in text
    return " ".join(text.replace("│", " ").split())


def test_mistakes_in_an_experiment_file_are_named_with_their_line(capsys, tmp_path):
    cases = {
        "experiment = 3": "does not define an Experiment called `experiment`",
        "import numpy\nx = (": "line 2: SyntaxError",
        "from ddpm_jax.nets.unet import UNetSpec\n\nUNetSpec(channels=-4)": "line 3: ValueError: channels is -4",
        "import nosuchmodule": "line 1: ModuleNotFoundError: No module named 'nosuchmodule'",
    }
    for number, (source, message) in enumerate(cases.items()):
        path = tmp_path / f"case{number}.py"
        path.write_text(source)
        assert message in fails(capsys, "train", path)


def test_a_dry_run_tells_the_cost_and_writes_nothing(capsys, experiment_file, tmp_path):
    launch.main(["train", str(experiment_file), "--dry-run", "--workdir", str(tmp_path / "run"), "--batch-size", "32"])
    text = capsys.readouterr().out
    config, _, table = text.partition("\n}\n")
    assert json.loads(config + "}")["batch_size"] == 32
    shapes = read_experiment(experiment_file).parameter_shapes((8, 8, 1))
    assert f"{sum(leaf.size for leaf in jax.tree.leaves(shapes)):,}" in table
    for name in ("data", "batch", "parameters", "FLOPs a step", "memory", "devices"):
        assert f"\n{name} " in f"\n{table}"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_published_recipe_can_be_costed_before_its_data_are_there(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    launch.main(["train", str(EXPERIMENTS / "cifar10.py"), "--dry-run"])
    text = capsys.readouterr().out
    assert re.search(r"parameters +35,746,307", text)
    assert "not there yet" in text


def test_flops_of_a_dry_run_are_those_that_xla_counts(tiny):
    """XLA leaves out what a 3x3 kernel multiplies in the padding, 1 - (1 - 1/12)^2 of it for 8x8 pixels."""
    big = dataclasses.replace(
        tiny, net=dataclasses.replace(tiny.net, channels=64, num_classes=None, label_dropout=0.0), batch_size=4
    )
    shapes = big.parameter_shapes((8, 8, 1))
    images, t = jax.ShapeDtypeStruct((4, 8, 8, 1), "float32"), jax.ShapeDtypeStruct((4,), "int32")
    lowered = jax.jit(lambda params, z, t: big.net.bind(params)(z, t)).lower(shapes, images, t)
    counted = lowered.cost_analysis()["flops"]
    assert 0.95 * counted < step_flops(big, shapes, (4, 8, 8, 1)) / 3 < 1.05 * counted / (11 / 12) ** 2


def test_sample_writes_images_and_a_picture(capsys, finished, tmp_path):
    output = tmp_path / "out" / "images.npz"
    launch.main(["sample", str(finished), "--num-images", "5", "--output", str(output), "--steps", "3"])
    with np.load(output) as stored:
        assert stored["images"].shape == (5, 8, 8, 1)
        assert stored["images"].dtype == np.uint8
    assert output.with_suffix(".png").stat().st_size > 0
    assert str(output) in capsys.readouterr().out


@pytest.mark.slow
def test_samples_follow_the_sampler_and_the_guidance_asked_for(finished, tmp_path):
    def draw(*flags: str) -> np.ndarray:
        output = tmp_path / "images.npz"
        launch.main(["sample", str(finished), "--num-images", "4", "--output", str(output), *flags])
        with np.load(output) as stored:
            return stored["images"].astype(int)

    plain = draw()
    solver = ["--sampler", "dpm-solver", "--steps", "3", "--grid", "quadratic", "--clip", "dynamic"]
    for flags in (solver, ["--guidance", "3"]):
        assert np.abs(draw(*flags) - plain).max() > 0, flags


def test_a_run_without_a_checkpoint(capsys, tiny, tmp_path):
    specs.save(tiny, tmp_path / "experiment.json")
    assert "has no checkpoint yet; train it first" in fails(capsys, "sample", tmp_path)


def test_prepare_finds_the_splits_of_an_npz(capsys, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (7, 6, 5), np.uint8)
    np.savez(
        tmp_path / "own.npz",
        train_images=images,
        train_labels=np.arange(7),
        test_images=images[:2],
        test_labels=np.arange(2),
    )
    launch.main(["prepare", "own", str(tmp_path / "own.npz"), "--data-dir", str(tmp_path)])
    assert "train (7), test (2)" in capsys.readouterr().out
    source = Tfds("own", split="test", data_dir=str(tmp_path), label_key="label")
    np.testing.assert_array_equal(source[1]["image"][..., 0], images[1])
    assert source[1]["label"] == 1
    assert "exists already" in fails(capsys, "prepare", "own", tmp_path / "own.npz", "--data-dir", tmp_path)


def test_it_is_a_module_too():
    command = [sys.executable, "-m", "ddpm_jax", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("ddpm-jax ")
