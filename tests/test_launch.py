"""The command line, as a person meets it: quick, and one clear message for whatever is wrong."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import EXPERIMENT, fails
from PIL import Image

from ddpm_jax import load_run
from ddpm_jax.cli import main
from ddpm_jax.cli.evaluate import choose_source
from ddpm_jax.cli.train import read_experiment
from ddpm_jax.data import Folder, Npz, Tfds
from ddpm_jax.data.tfds import tfds_root
from ddpm_jax.errors import RunError
from ddpm_jax.features.extractor import existing_file
from ddpm_jax.storage import paths, specs
from ddpm_jax.storage.paths import require_folder
from ddpm_jax.training.cost import step_flops

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
    assert modules_after("from ddpm_jax.cli.main import main\nmain(['--help'])").isdisjoint([*HEAVY, "jax", "flax"])


def test_a_whole_experiment_never_imports_tensorflow_or_torch():
    code = "import ddpm_jax.training.loop, ddpm_jax.cli.sample, ddpm_jax.cli.prepare, ddpm_jax.cli.dry_run"
    assert modules_after(code).isdisjoint({"tensorflow", "torch"})


@pytest.fixture(scope="module")
def experiment_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiment") / "own.py"
    path.write_text(EXPERIMENT)
    return path


def test_mistakes_in_an_experiment_file_are_named_with_their_line(capsys, tmp_path):
    cases = {
        "experiment = 3": "does not define an Experiment called `experiment`",
        "import numpy\nx = (": "line 2: SyntaxError",
        "from ddpm_jax.nets.unet import UNet\n\nUNet(channels=-4)": "line 3: ValueError: channels is -4",
        "import nosuchmodule": "line 1: ModuleNotFoundError: No module named 'nosuchmodule'",
    }
    for number, (source, message) in enumerate(cases.items()):
        path = tmp_path / f"case{number}.py"
        path.write_text(source)
        assert message in fails(capsys, "train", path)


def test_a_dry_run_tells_the_cost_and_writes_nothing(capsys, experiment_file, tmp_path):
    main.main(["train", str(experiment_file), "--dry-run", "--workdir", str(tmp_path / "run"), "--batch-size", "32"])
    text = capsys.readouterr().out
    config, _, table = text.partition("\n}\n")
    assert json.loads(config + "}")["batch_size"] == 32
    experiment = read_experiment(experiment_file)
    shapes = jax.eval_shape(lambda key: experiment.net.init(key, (8, 8, 1)), jax.random.key(0))
    assert f"{sum(leaf.size for leaf in jax.tree.leaves(shapes)):,}" in table
    for name in ("data", "batch", "parameters", "FLOPs a step", "memory", "devices"):
        assert f"\n{name} " in f"\n{table}"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_published_recipe_can_be_costed_before_its_data_are_there(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    main.main(["train", str(EXPERIMENTS / "cifar10.py"), "--dry-run"])
    text = capsys.readouterr().out
    assert re.search(r"parameters +35,746,307", text)
    assert "not there yet" in text


def test_flops_of_a_dry_run_are_those_that_xla_counts(tiny, one):
    """XLA leaves out what a 3x3 kernel multiplies in the padding, 1 - (1 - 1/12)^2 of it for 8x8 pixels."""
    big = dataclasses.replace(
        tiny, net=dataclasses.replace(tiny.net, channels=64, num_classes=None, label_dropout=0.0), batch_size=4
    )
    plan = big.plan(one)
    shapes = plan.state.params
    images, t = jax.ShapeDtypeStruct((4, 8, 8, 1), "float32"), jax.ShapeDtypeStruct((4,), "int32")
    lowered = jax.jit(lambda params, z, t: big.net.bind(params)(z, t)).lower(shapes, images, t)
    counted = lowered.cost_analysis()["flops"]
    assert 0.95 * counted < step_flops(plan) / 3 < 1.05 * counted / (11 / 12) ** 2


def test_sample_writes_images_and_a_picture(capsys, finished, tmp_path):
    output = tmp_path / "out" / "images.npz"
    main.main(["sample", str(finished), "--num-images", "5", "--output", str(output), "--steps", "3"])
    with np.load(output) as stored:
        assert stored["images"].shape == (5, 8, 8, 1)
        assert stored["images"].dtype == np.uint8
    assert output.with_suffix(".png").stat().st_size > 0
    assert str(output) in capsys.readouterr().out


@pytest.mark.slow
def test_samples_follow_the_sampler_and_the_guidance_asked_for(finished, tmp_path):
    def draw(*flags: str) -> np.ndarray:
        output = tmp_path / "images.npz"
        main.main(["sample", str(finished), "--num-images", "4", "--output", str(output), *flags])
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
    main.main(["prepare", "own", str(tmp_path / "own.npz"), "--data-dir", str(tmp_path)])
    assert "train (7), test (2)" in capsys.readouterr().out
    source = Tfds("own", split="test", data_dir=str(tmp_path), label_key="label")
    np.testing.assert_array_equal(source[1]["image"][..., 0], images[1])
    assert source[1]["label"] == 1
    assert "exists already" in fails(capsys, "prepare", "own", tmp_path / "own.npz", "--data-dir", tmp_path)


def test_it_is_a_module_too():
    command = [sys.executable, "-m", "ddpm_jax", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("ddpm-jax ")


def test_help_and_version_by_the_names_that_people_try(capsys):
    for arguments in ([], ["-h"], ["--help"], ["help"]):
        main.main(arguments)
        assert capsys.readouterr().out.startswith("usage: ddpm-jax COMMAND ...")
    for argument in ("--version", "-V", "version"):
        main.main([argument])
        assert capsys.readouterr().out.startswith("ddpm-jax ")


@pytest.mark.parametrize("command", ["sample", "evaluate", "import", "export", "prepare"])
def test_help_lists_choices_in_order_and_without_none(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main.main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "{None" not in text
    if command in ("sample", "evaluate"):
        assert "{ancestral,ddim,dpm-solver,exponential-heun,heun,uni-pc}" in text
        assert "{uniform,quadratic,log-snr,karras}" in text


WARNS = """
import warnings
from ddpm_jax.cli import main

def command(arguments):
    warnings.warn("nothing is well")
    warnings.warn("a value overflows", RuntimeWarning)

main._guarded(command, [])
assert warnings.formatwarning is not main._one_line
"""


@pytest.mark.parametrize("debug", ["", "1"])
def test_a_warning_of_a_command_is_one_line_without_source(debug):
    environment = {**os.environ, "DDPM_JAX_DEBUG": debug, "PYTHONWARNINGS": "default"}
    command = [sys.executable, "-c", WARNS]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr
    lines = "ddpm-jax: warning: nothing is well\nddpm-jax: warning: RuntimeWarning: a value overflows\n"
    assert (told == lines) == (debug == "")
    assert "nothing is well" in told


def test_errors_of_the_operating_system_are_told_without_their_number(capsys, tmp_path):
    def command(arguments):
        (tmp_path / "nosuch" / "file").read_bytes()

    with pytest.raises(SystemExit) as stop:
        main._guarded(command, [])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"ddpm-jax: {tmp_path / 'nosuch' / 'file'}: No such file or directory\n"


@pytest.mark.parametrize(
    ("file", "expected"),
    [("ddpm_jax/data/x.py", True), ("ddpm_jax/errors.py", True), ("numpy/x.py", False), ("../own.py", True)],
)
def test_an_installed_package_knows_its_own_errors(tmp_path, monkeypatch, file, expected):
    """Which end with one message; those of libraries beside it are shown with their traceback."""
    site = tmp_path / "site-packages"
    monkeypatch.setattr(main, "__file__", str(site / "ddpm_jax" / "cli" / "main.py"))
    with pytest.raises(ValueError, match="no") as caught:
        exec(compile("raise ValueError('no')", str(site / file), "exec"))
    assert main._refused_here(caught.value) == expected


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="read-only; choose another"):
        require_folder(tmp_path / "new" / "run", "choose another")


# Paths.


PLACES = {
    "a run's folder": lambda: paths.run_path("~/x"),
    "a run's folder as a Path": lambda: paths.run_path(Path("~/x")),
    "features": lambda: existing_file("~/x", "a file"),
    "the cache": lambda: paths.cache_folder("y").parents[1],
    "TFDS data": lambda: Path(tfds_root("~/x")),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_tilde_is_the_home_folder(place, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "~/x")
    (tmp_path / "x").write_text("")
    assert PLACES[place]() == tmp_path / "x"


@pytest.mark.slow
def test_a_tilde_in_the_paths_of_commands(capsys, finished, experiment_file, tmp_path, monkeypatch):
    """Beside `sample`, which test_short_runs.py has."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    shutil.copytree(finished, tmp_path / "home" / "run")
    shutil.copy(experiment_file, tmp_path / "home" / "own.py")
    np.savez(tmp_path / "home" / "x.npz", images=np.zeros((3, 8, 8, 1), np.uint8), labels=np.arange(3))
    run = load_run("~/run")
    assert read_experiment("~/own.py") == read_experiment(tmp_path / "home" / "own.py")
    assert len(choose_source("--reference", run, "~/x.npz")) == 3
    assert choose_source("--reference", run, "~/run") == run.experiment.data
    main.main(["prepare", "own", "~/x.npz", "--data-dir", "~/sets"])
    shutil.copytree(Path(__file__).parent / "reference" / "diffusers", tmp_path / "home" / "diffusers")
    main.main(["import", "~/diffusers", "--output", "~/imported"])
    main.main(["export", "~/imported", "~/exported"])
    assert (tmp_path / "home" / "sets" / "own").is_dir()
    assert (tmp_path / "home" / "imported" / "experiment.json").is_file()
    assert (tmp_path / "home" / "exported" / "model_index.json").is_file()
    assert list((tmp_path / "work").iterdir()) == []
    capsys.readouterr()
    assert f"there is no file {tmp_path / 'home' / 'nosuch.py'}" in fails(capsys, "train", "~/nosuch.py")


@pytest.mark.parametrize("data", [Npz("~/x.npz"), Folder("~/photos")], ids=["npz", "folder"])
def test_a_tilde_in_the_paths_of_data(data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 8, 8, 1), np.uint8))
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "photos" / "1.png")
    assert data[0]["image"].shape == (8, 8, 1)
