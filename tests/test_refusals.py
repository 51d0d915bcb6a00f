"""Wrong input: one clear message with the remedy, exit status 2, no traceback, and nothing on disk has changed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import EXPERIMENT
from PIL import Image

from ddpm_jax.cli import main
from ddpm_jax.storage import specs
from ddpm_jax.storage.classes import load_file

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
TRAIN, OWN, RUN = ("train",), ("train", "own.py"), ("train", "own.py", "--workdir", "new")
SAMPLE = ("sample", "run", "--output", "images.npz")

COMMANDS = [
    (("tarin",), "the command is 'tarin'; expected one of train, sample, "),
    (("trian",), "did you mean 'train'?"),
    (("Evaluat",), "did you mean 'evaluate'?"),
    (("own.py",), "did you mean `ddpm-jax train own.py`?"),
    ((*TRAIN, "run"), "run is the folder of a run; give run/experiment.json, and --workdir run to resume it"),
    ((*TRAIN, "photos"), "photos is a folder; expected an experiment, FILE.py or FILE.json"),
    (("sample", "photos"), "photos is not a run: it has no experiment.json"),
    (("sample", "notes.txt"), "notes.txt is not a run: it has no experiment.json"),
    (("sample", "run/checkpoints"), "did you mean run?"),
    (("sample", "run/experiment.json"), "did you mean run?"),
    (("sample", "."), "it contains 3: cosine, list, run"),
    (("sample", "list"), "list/experiment.json is 'tuple'; expected an Experiment"),
    (("sample", "cosine"), "cosine/experiment.json is 'Cosine'; expected an Experiment"),
    (("evaluate", "run", "--features", "nosuch"), "the features are 'nosuch'; expected inception"),
    (("export", "run", "notes.txt/x"), "notes.txt is a file; give another PATH"),
    (("export", "nosuch", "x"), "nosuch is not a run: it has no experiment.json, and there is no such folder"),
    (("import", "photos", "--output", "notes.txt/x"), "notes.txt is a file; choose another --output"),
    ((*TRAIN, "nosuch.py"), "there is no file nosuch.py; expected an experiment, FILE.py or FILE.json"),
    ((*TRAIN, "notes.txt"), "notes.txt is not an experiment; expected FILE.py or FILE.json"),
    ((*TRAIN, "--batch-size", "3"), "the first argument is '--batch-size'; expected an experiment"),
    (("sample", "nosuch"), "nosuch is not a run: it has no experiment.json"),
    (("sample",), "required"),
    ((*TRAIN, "run/experiment.json", "--workdir", "run", "--num-steps", "5"), "give --num-steps 6 or more"),
    (("prepare", "own"), "required"),
]
FLAGS = [
    (("--batch-sise", "3"), "Unrecognized options: --batch-sise"),
    (("--batch-size", "many"), "invalid literal for int() with base 10: 'many'"),
    (("--batch-size", "0"), "batch_size is 0; expected at least 1"),
    (("--batch-size", "12"), "batch_size is 12, which 8 devices cannot share equally; try 8 or 16"),
    (("--accumulate", "0"), "accumulate is 0; expected at least 1"),
    (("--accumulate", "3"), "batch_size is 16, which 8 devices cannot share equally in 3 parts; try 24"),
    (("--mesh.fsdp", "3"), "mesh.fsdp is 3; expected a divisor of the number of devices, 8: 1, 2, 4, 8"),
    (("--mesh.fsdp", "0"), "fsdp is 0; expected a whole number, at least 1"),
    (("--mesh.data", "3"), "mesh.data is 3; expected 8, as 8 devices / fsdp 1"),
    (("--optimizer.learning-rate", "-1"), "learning_rate is -1.0; expected more than 0"),
    (("--optimizer.learning-rate", "nan"), "learning_rate is nan; expected more than 0"),
    (("--optimizer.b1", "1"), "b1 is 1.0; expected 0 or more, less than 1"),
    (("--optimizer.decay", "linear"), "invalid choice"),
    (("--optimizer.clip-norm", "0"), "clip_norm is 0.0; expected None or more than 0"),
    (("--ema.width", "0.5"), "width is 0.5; expected 0.0001 to 0.2886"),
    (("--ema.others", "0.1"), "others"),
    (("--ema.snapshot-every", "0"), "snapshot_every is 0; expected"),
    (("--net.channels", "1"), "channels is 1; expected at least 2"),
    (("--net.dtype", "float64"), "invalid choice"),
    (("--net.dropout", "1"), "dropout is 1.0; expected 0 or more, less than 1"),
    (("--net.num-classes", "3"), "num_classes is 3, but the first example has label"),
    (("--net.channel-multipliers", "1", "2", "2", "2", "2"), "image height is 8; with 5 levels"),
    (("--sampler.num-steps", "50"), "num_steps is 50; expected 1 to 30"),
    (("--sampler.eta", "2"), "eta is 2.0; expected 0 (deterministic) to 1"),
    (("--data.split", "validation"), "validation"),
    (("--num-steps", "0"), "num_steps is 0; expected at least 1"),
    (("--log-every", "0"), "log_every is 0; expected at least 1"),
    (("--keep-every", "0"), "keep_every is 0; expected None or at least 1"),
    (("--seed", "-1"), "seed is -1; expected 0 or more"),
    (("--name", "a/b"), "name is 'a/b'; expected a name that a folder can have"),
    (("--profile", "5", "2"), "profile is (5, 2); expected the first and the last step"),
    (("--num-processes", "2"), "--num-processes is 2, which needs --coordinator and --process-index too"),
    (("--join-timeout", "0"), "--join-timeout is 0; expected at least 1 second"),
    (("--workdir", "notes.txt"), "notes.txt is a file; --workdir names a folder"),
    (("--workdir", "notes.txt/x"), "notes.txt is a file; choose another --workdir"),
    (("--profile", "1"), "--profile"),
    (("--learning-rate", "1"), "--optimizer.learning-rate FLOAT"),
    (("--workdir", "run"), "run holds a run of a different experiment"),
    (("--workdir", "headless"), "headless holds checkpoints but no experiment.json; choose another --workdir"),
]
# What is wrong in an experiment file: its text, after the imports of a whole one.
FILES = [
    ("experiment = 3", "does not define an Experiment called `experiment`"),
    ("x = (", "SyntaxError"),
    ("UNet(channels=-4)", "ValueError: channels is -4"),
    ("import nosuchmodule", "ModuleNotFoundError: No module named 'nosuchmodule'"),
    ("1 / 0", "ZeroDivisionError: division by zero"),
    (
        "experiment = replace(experiment, net=Digits())",
        "net is Digits(split='train'); expected a Network",
    ),
    (
        "experiment = replace(experiment, data=3)",
        "data is 3; expected a Source, an object with the methods __len__ and",
    ),
    ("experiment = replace(experiment, data=Npz('nosuch.npz'))", "path is 'nosuch.npz'; there is no such file"),
    ("experiment = replace(experiment, data=Npz('notes.txt'))", "which is not an .npz file; write one with"),
    ("experiment = replace(experiment, data=Npz('own.npz', 'test'))", "images is 'test'; own.npz holds"),
    ("experiment = replace(experiment, data=Npz('own.npz', 'floats'))", "has dtype float64; expected uint8"),
    ("experiment = replace(experiment, data=Npz('own.npz', 'first'))", "Write images.transpose(0, 2, 3, 1) for"),
    ("experiment = replace(experiment, data=Npz('own.npz', 'none'))", "with N at least 1"),
    ("experiment = replace(experiment, data=Npz('own.npz', 'good', 'few'))", "expected one integer for each image"),
    ("experiment = replace(experiment, data=Folder('nosuch'))", "nosuch"),
    ("experiment = replace(experiment, data=Folder('headless'))", "which holds no images; expected files ending in"),
    ("experiment = replace(experiment, data=Folder('photos', size=8, channels=1))", "cannot be read as an image"),
    ("experiment = replace(experiment, data=Tfds('nosuch', data_dir='.'))", "holds no such prepared data set"),
    ("experiment = replace(experiment, data=Tfds('No such'))", "expected NAME, NAME/CONFIG"),
    ("experiment = replace(experiment, variance=LearnedRange())", "use Hybrid() or FullBound()"),
    ("experiment = replace(experiment, objective=Hybrid())", "which trains a variance"),
]
# What is wrong in an experiment.json: how to make it so from a good one.
JSON = [
    (lambda good: good[: len(good) // 2], "is not JSON"),
    (lambda good: good.replace('"batch_size"', '"batchsize"'), "batchsize: Experiment has no such field; it has name"),
    (lambda good: good.replace('"batch_size": 16', '"batch_size": "16"'), "batch_size is '16'; expected int"),
    (lambda good: good.replace('"num_steps": 24', '"num_steps": 0'), "num_steps is 0; expected at least 1"),
    (lambda good: good.replace("nets:UNet", "nets:Unet"), "net: class 'nets:Unet' cannot be loaded"),
    (lambda good: good.replace("own.py:Constant", "gone.py:Constant"), "class 'gone.py:Constant' cannot be loaded"),
    (lambda good: good.replace('"name": "killed",', ""), "name is missing"),
    (lambda good: "[1, 2]", "does not define an Experiment"),
    (lambda good: '{"a": 1}', "the experiment has no field 'class'"),
    (lambda good: '{"class": "schedule:Cosine"}', "does not define an Experiment"),
    (lambda good: "[" * 100_000, "is not JSON"),
]
SAMPLES = [
    (("--output", "notes.txt/images.npz"), "notes.txt is a file; choose another --output"),
    (("--output", "folder.npz"), "--output is 'folder.npz'; expected the name of a file; this is a folder"),
    (("--num-images", "2.5"), "invalid literal for int()"),
    (("--sampler", "DDIM"), "Expected one of ('ancestral', 'ddim', 'dpm-solver', 'exponential-heun', 'heun', 'uni"),
    (("--clip", "on"), "Expected one of ('static', 'dynamic', 'off')"),
    (("--ema", "many"), "Error parsing --ema: no type matching FLOAT"),
    (("--output", "images.png"), "--output is 'images.png'; expected a file name that ends in .npz"),
    (("--num-images", "0"), "--num-images is 0; expected at least 1"),
    (("--seed", "-1"), "--seed is -1; expected 0 or more"),
    (("--steps", "21"), "num_steps is 21; expected 1 to 20"),
    (("--sampler", "euler"), "invalid choice"),
    (("--eta", "2"), "eta is 2.0; expected 0 (deterministic) to 1"),
    (("--sampler", "heun", "--sde"), "--sde is True; expected none, as the sampler Heun has no sde"),
    (("--sampler", "ancestral", "--eta", "0.5"), "--eta is 0.5; expected none, as the sampler Ancestral has no eta"),
    (("--guidance", "nan"), "guidance is nan; expected a finite number"),
    (("--label", "10"), "--label is 10; expected one of the classes, 0..9"),
    (("--ema", "0.5"), "ema is 0.5; expected an average that the run has kept: 0.9"),
]
PREPARE = [
    (("Own", "good.npz"), "name is 'Own'; expected lower-case words joined by underscores"),
    (("own", "nosuch.npz"), "expected an .npz or a folder of images that exists"),
    (("own", "notes.txt"), "expected an .npz or a folder of images that exists"),
    (("own", "empty.npz"), "cannot be read as an .npz"),
    (("own", "own.npz"), "expected `images`, or SPLIT_images for each split"),
    (("own", "headless"), "which holds no images"),
    (("own", "photos", "--size", "0"), "size is 0; expected at least 1 pixel"),
    (("own", "photos", "--channels", "2"), "Expected one of ('1', '3')"),
    (("own", "good.npz", "--size", "8"), "--size is 8; expected none with an .npz"),
    (("own", "good.npz", "--labels"), "--labels is True; expected none with an .npz"),
]
TOGETHER = {"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
ENVIRONMENT = [
    (TOGETHER | {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two'; expected"),
    (TOGETHER | {"JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID is 2; expected 0 to 1, as there are 2 processes"),
    (TOGETHER | {"JAX_COORDINATOR_ADDRESS": "localhost"}, "expected HOST:PORT, such as node01:1234"),
    ({"JAX_NUM_PROCESSES": "2"}, "needs JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID too"),
    ({"SLURM_STEP_NUM_TASKS": "many", "SLURM_PROCID": "0"}, "SLURM_STEP_NUM_TASKS is 'many'; expected"),
]

IMPORTS = """
from dataclasses import replace
from ddpm_jax.data import Folder, Npz, Tfds
from ddpm_jax.diffusion.objective import Hybrid
from ddpm_jax.diffusion.variance import LearnedRange
"""


@pytest.fixture(scope="module")
def world(finished, tmp_path_factory):
    """A folder with an experiment, a run, data, and things that are none of these."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "own.py").write_text(EXPERIMENT)
    (folder / "notes.txt").write_text("nothing of interest")
    shutil.copytree(finished, folder / "run")
    (folder / "headless" / "checkpoints").mkdir(parents=True)
    (folder / "photos").mkdir()
    Image.fromarray(IMAGES[0, ..., 0]).save(folder / "photos" / "b.png")
    (folder / "photos" / "a.png").write_bytes(b"\x89PNG broken")
    arrays = {"floats": IMAGES / 255, "first": IMAGES.reshape(5, 1, 8, 8), "none": IMAGES[:0], "few": np.arange(3)}
    np.savez(folder / "own.npz", good=IMAGES, **arrays)
    np.savez(folder / "good.npz", images=IMAGES)
    (folder / "empty.npz").write_bytes(b"")
    (folder / "folder.npz").mkdir()
    for name, text in {"list": "[1, 2]", "cosine": '{"class": "schedule:Cosine"}'}.items():
        (folder / name).mkdir()
        (folder / name / "experiment.json").write_text(text)
    specs.save(load_file(folder / "own.py").experiment, folder / "good.json")
    return folder


@pytest.fixture
def refused(world, capsys, monkeypatch):
    """refused(arguments, *messages): they are, in the world, which stays as it is."""
    monkeypatch.chdir(world)

    def check(arguments, *messages):
        before = contents(world)
        with pytest.raises(SystemExit) as stop:
            main.main(list(arguments))
        printed = capsys.readouterr()
        text = " ".join((printed.err + printed.out).replace("│", " ").split())
        assert stop.value.code == 2, text
        for message in messages:
            assert message in text
        assert "Traceback" not in text
        assert contents(world) == before

    return check


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every path in a folder, and what is in it."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def named(cases):
    """Test names that tell the case."""
    return [pytest.param(*case, id=str(case[1])[:40]) for case in cases]


@pytest.mark.parametrize(("arguments", "message"), named(COMMANDS))
def test_a_command(refused, arguments, message):
    refused(arguments, message)


@pytest.mark.parametrize(("flags", "message"), named(FLAGS))
def test_a_flag(refused, flags, message):
    refused((*(OWN if "--workdir" in flags else RUN), *flags), message)


@pytest.mark.parametrize(("text", "message"), named(FILES))
def test_an_experiment_file(refused, world, text, message):
    good = EXPERIMENT.split("if __name__")[0]
    (world / "case.py").write_text(good + IMPORTS + text + "\n")
    refused(("train", "case.py", "--workdir", "new"), message)


@pytest.mark.parametrize(("change", "message"), named(JSON))
def test_an_experiment_json(refused, world, change, message):
    good = (world / "good.json").read_text()
    assert change(good) != good
    (world / "case.json").write_text(change(good))
    refused(("train", "case.json", "--workdir", "new"), message, "ddpm-jax: case.json")


@pytest.mark.parametrize(("flags", "message"), named(SAMPLES))
def test_a_request_for_samples(refused, flags, message):
    refused((*SAMPLE, *flags), message)


@pytest.mark.parametrize(("arguments", "message"), named(PREPARE))
def test_preparing_data(refused, arguments, message):
    refused(("prepare", *arguments, "--data-dir", "sets"), message)


@pytest.mark.parametrize(("variables", "message"), named(ENVIRONMENT))
def test_the_environment(refused, monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refused(RUN, message)


@pytest.mark.parametrize("platform", [pytest.param("cuda", marks=pytest.mark.slow), "nosuch"])
def test_a_device_that_is_not_there(world, platform):
    """In a process of its own, as JAX is asked once."""
    before = contents(world)
    command, environment = [sys.executable, "-m", "ddpm_jax", *RUN], {**os.environ, "JAX_PLATFORMS": platform}
    done = subprocess.run(command, env=environment, cwd=world, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"ddpm-jax: JAX_PLATFORMS is '{platform}', but JAX finds no such device")
    assert "Traceback" not in done.stderr
    assert contents(world) == before


@pytest.mark.usefixtures("unchecked")
def test_a_reference_that_is_none_of_what_it_can_be(refused):
    flags = ("--reference", "notes.txt", "--features", "pixels")
    refused(("evaluate", "run", *flags), "--reference is 'notes.txt'; expected a split of the run's data, FILE.npz or")


def test_there_are_enough_cases():
    tables = COMMANDS, FLAGS, FILES, JSON, SAMPLES, PREPARE, ENVIRONMENT
    assert sum(map(len, tables)) >= 60
