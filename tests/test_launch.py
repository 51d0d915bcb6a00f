"""The command line, as a person meets it: quick, and one clear message for whatever is wrong."""

import dataclasses
import json
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


def test_wrong_commands(capsys, tmp_path):
    assert "the command is 'tarin'; expected one of train, sample, prepare" in fails(capsys, "tarin")
    assert "there is no file nosuch.py; expected an experiment, FILE.py or FILE.json" in fails(
        capsys, "train", "nosuch.py"
    )
    assert "nosuch is not a run: it has no experiment.json" in fails(capsys, "sample", "nosuch")
    assert "expected an .npz or a folder of images that exists" in fails(capsys, "prepare", "name", "nosuch.npz")
    (tmp_path / "notes.txt").write_text("")
    assert "is no experiment; expected FILE.py or FILE.json" in fails(capsys, "train", tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-sise", "3"], "Unrecognized options: --batch-sise"),
        (["--batch-size", "many"], "invalid literal for int() with base 10: 'many'"),
        (["--batch-size", "0"], "batch_size is 0; expected at least 1"),
        (["--optimizer.learning-rate", "-1"], "learning_rate is -1.0; expected more than 0"),
        (["--net.channels", "1"], "channels is 1; expected at least 2"),
        (["--net.dtype", "float64"], "invalid choice"),
        (["--sampler.num-steps", "50"], "num_steps is 50; expected 1 to 30"),
        (
            ["--net.channel-multipliers", "1", "2", "2", "2", "2"],
            "image height is 8; with 5 levels",
        ),
        (["--net.num-classes", "3"], "num_classes is 3, but the first example has label"),
        (["--data.split", "validation"], "validation"),
    ],
)
def test_wrong_flags_are_named_before_anything_is_written(capsys, experiment_file, tmp_path, flags, message):
    assert message in fails(capsys, "train", experiment_file, "--workdir", tmp_path / "run", *flags)
    assert not (tmp_path / "run").exists()


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


def test_a_published_recipe_can_be_costed_before_its_data_are_there(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    launch.main(["train", str(EXPERIMENTS / "cifar10.py"), "--dry-run"])
    text = capsys.readouterr().out
    assert "parameters    35,746,307" in text
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


def test_wrong_requests_for_samples(capsys, finished, tmp_path):
    sample = ("sample", finished, "--output", tmp_path / "images.npz")
    assert "--output is" in fails(capsys, "sample", finished, "--output", tmp_path / "images.png")
    assert "--num-images is 0; expected at least 1" in fails(capsys, *sample, "--num-images", "0")
    assert "num_steps is 21; expected 1 to 20" in fails(capsys, *sample, "--steps", "21")
    assert "eta is 2.0; expected 0 (deterministic) to 1" in fails(capsys, *sample, "--eta", "2")
    assert "--eta is 0.5; expected none, as the sampler Ancestral has no eta" in fails(
        capsys, *sample, "--sampler", "ancestral", "--eta", "0.5"
    )
    assert "--sde is True; expected none, as the sampler Heun has no sde" in fails(
        capsys, *sample, "--sampler", "heun", "--sde"
    )
    assert "guidance is nan; expected a finite number" in fails(capsys, *sample, "--guidance", "nan")
    assert "--label is 10; expected one of the classes, 0..9" in fails(capsys, *sample, "--label", "10")
    assert not (tmp_path / "images.npz").exists()


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
