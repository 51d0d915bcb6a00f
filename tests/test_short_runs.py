"""Defaults suit short and long trainings alike, and what is probably not meant is told, with a remedy that works."""

import ast
import contextlib
import dataclasses
import io
import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Factors, averages_of

from ddpm_jax import load_run
from ddpm_jax.cli import main
from ddpm_jax.cli.dry_run import report
from ddpm_jax.cli.train import TrainOptions
from ddpm_jax.diffusion import schedule
from ddpm_jax.evaluation import progress
from ddpm_jax.training import advice
from ddpm_jax.training.average import Averaging, Ema, PowerEma
from ddpm_jax.training.loop import train
from ddpm_jax.training.optimizer import Adam
from ddpm_jax.training.resume import conflicts

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@dataclass(frozen=True)
class Harmonic(Averaging):
    """A rule of a user's own, without a closed form of the share: step k makes up 1 / (k + 1) of the average."""

    @property
    def profiles(self):
        return (1.0,)

    def shares(self, step):
        return (1.0 / (step + 1.0),)


RULES = [Ema(), Ema(0.9), Ema(0.9, warmup=False), Ema(0.99, warmup=False, others=(0.5, 0.0)), PowerEma(), Harmonic()]


@pytest.mark.parametrize("averaging", RULES, ids=repr)
def test_the_share_of_the_first_parameters_is_what_the_average_contains(averaging):
    """Parameters that are 1 before the first step and 0 after it: the average is the share of the first ones."""
    found = averages_of(averaging, [1.0] + [0.0] * 60)
    for step in (1, 2, 3, 10, 60):
        assert averaging.initial_shares(step) == pytest.approx(found[step - 1], rel=1e-5, abs=2e-6)
    assert averaging.initial_shares(0) == (1.0,) * len(averaging.profiles)


@pytest.mark.parametrize("decay", [0.9999, 0.999, 0.7, 0.05])
def test_the_closed_form_with_warm_up_is_the_product_of_the_decays(decay):
    steps = np.arange(1, 3001)
    logarithms = np.cumsum(np.log(np.minimum(decay, (1 + steps) / (10 + steps))))
    for step in (1, 5, 80, 3000):
        share = Ema(decay).initial_shares(step)[0]
        assert share == pytest.approx(math.exp(logarithms[step - 1]), rel=1e-9, abs=1e-300)


def test_a_rule_of_ones_own_is_followed_over_millions_of_steps():
    """1 / (n + 1) by blocks: at 12,287 steps that is three of them."""
    assert Harmonic().initial_shares(3 * 4096 - 1)[0] == pytest.approx(1 / (3 * 4096), rel=1e-4)


def test_the_defaults_depend_on_the_step_alone(tiny):
    """So a run that is continued with a larger num_steps is the same run."""
    short, long = (Adam().schedule(num_steps) for num_steps in (100, 800_000))
    assert [float(short(step)) for step in (0, 50, 99, 5000)] == [float(long(step)) for step in (0, 50, 99, 5000)]
    new = dataclasses.replace(tiny, optimizer=Adam(), ema=Ema(), num_steps=100)
    assert conflicts(new, dataclasses.replace(new, num_steps=800_000)) == []


def test_the_defaults_have_learned_at_full_speed_soon():
    """After 300 steps the rate is the whole one, and less than 1e-4 of the average is untrained, however long it is."""
    assert float(Adam().schedule(300)(300)) == pytest.approx(Adam().learning_rate)
    assert Ema().initial_shares(300)[0] < 1e-4
    late = jnp.int32(200_000)
    assert float(Ema().shares(late)[0]) == float(Ema(warmup=False).shares(late)[0])


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.py")), ids=lambda path: path.stem)
def test_published_recipes_give_their_own_warm_ups(path):
    """Not the defaults, which may change."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    named = {getattr(call.func, "attr", None): {keyword.arg for keyword in call.keywords} for call in calls}
    kept = {"optimizer", "ema"} - named.get("replace", {"optimizer", "ema"})  # those of another of these experiments
    assert "optimizer" in kept or {"learning_rate", "warmup_steps"} <= named["Adam"]
    assert "ema" in kept or {"decay", "warmup"} <= named["Ema"]


@pytest.mark.parametrize("name", ["cifar10", "celeba_hq", "lsun"])
def test_the_recipes_of_2020_are_as_published(name):
    source = (EXPERIMENTS / f"{name}.py").read_text()
    assert "Ema(decay=0.9999, warmup=False)" in source
    assert "warmup_steps=5000" in source


# Warnings.


def told(experiment) -> list[str]:
    """What `check` warns of."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        experiment.check()
    return [str(warning.message) for warning in found]


@pytest.fixture
def plain(tiny):
    """An experiment of which nothing is to be said."""
    return dataclasses.replace(tiny, schedule=schedule.Cosine(20), ema=Ema())


@pytest.mark.parametrize(
    ("ema", "num_steps", "share"),
    [
        (Ema(), 300, None),
        (Ema(), 800_000, None),
        (Ema(0.9999, warmup=False), 300, "97% of the average 0.9999"),
        (Ema(0.9999, warmup=False), 29_000, "6% of the average 0.9999"),
        (Ema(0.9999999, warmup=False), 300, "100% of the average 0.9999999"),
        (Ema(0.9999, warmup=False), 31_000, None),
        (
            Ema(0.99, warmup=False, others=(0.999, 0.9999)),
            1000,
            "37% of the average 0.999 and 90% of the average 0.9999",
        ),
        (PowerEma(), 10, None),
        (Harmonic(), 10, "9% of the average 1"),
        (Harmonic(), 30, None),
    ],
)
def test_an_average_that_stays_near_its_start_is_told_of(plain, ema, num_steps, share):
    found = told(dataclasses.replace(plain, ema=ema, num_steps=num_steps))
    assert len(found) == (share is not None)
    assert share is None or share in found[0]


@pytest.mark.parametrize("num_steps", [2, 10, 100, 1000, 4000])
@pytest.mark.parametrize("kind", [schedule.Linear, schedule.ScaledLinear, schedule.Cosine, schedule.Sigmoid])
def test_published_schedules_are_not_told_of(kind, num_steps):
    assert advice.of_schedule(kind(num_steps)) is None


@pytest.mark.parametrize("num_steps", [10, 50, 100, 250, 400])
@pytest.mark.parametrize(("kind", "ends"), [(schedule.Linear, (1e-4, 0.02)), (schedule.ScaledLinear, (0.00085, 0.012))])
def test_betas_for_a_thousand_steps_are_told_of_and_each_remedy_helps(plain, kind, ends, num_steps):
    spec = kind(num_steps, *ends)
    (message,) = told(dataclasses.replace(plain, schedule=spec))
    assert f"{float(spec.build().alpha_bar[-1]):.2g} of the data's variance" in message
    remedies = re.findall(r"\((--schedule\.beta-start [^)]*)\)", message)
    assert len(remedies) == (2 if ends[1] * 1000 / num_steps < 1 else 1)
    experiment = dataclasses.replace(plain, schedule=spec, sampler=dataclasses.replace(plain.sampler, num_steps=None))
    for flags in remedies:
        options = launch_options(experiment, flags.split())
        assert told(options) == []


def launch_options(experiment, flags):
    """The experiment with what the command line changes."""
    import tyro

    return tyro.cli(TrainOptions, args=flags, default=TrainOptions(experiment)).experiment


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (schedule.Linear(1000, 1e-6, 1e-5), 1),
        (schedule.Betas((0.1, 0.2, 0.05, 0.4)), 1),
        (schedule.Cosine(20, max_beta=0.01), 1),
        (schedule.Betas((0.1, 0.9, 0.99)), 0),
    ],
    ids=repr,
)
def test_any_schedule_that_keeps_the_data_is_told_of(spec, expected):
    assert (advice.of_schedule(spec) is not None) == expected


def test_a_dry_run_tells_it_too(plain):
    plain = dataclasses.replace(plain, net=Factors())
    text = report(dataclasses.replace(plain, schedule=schedule.Linear(100, 1e-4, 0.02), ema=Ema(warmup=False)))
    (first, second) = re.findall(r"^warning +(.*)$", text, re.MULTILINE)
    assert "z_T keeps 0.36 of the data's variance" in first
    assert "100% of the average 0.9999" in second
    assert "warning" not in report(plain)


# A run, and what it says.  Its folder is named by ~.


@pytest.fixture(scope="module")
def short(tiny):
    net, slow = Factors(), Ema(0.9999, warmup=False)
    return dataclasses.replace(tiny, net=net, ema=slow, num_steps=2, num_samples=1, sample_every=2, checkpoint_every=2)


@pytest.fixture(scope="module")
def lines(short, one, tmp_path_factory):
    """What three trainings in ~/run say on stderr: a new one, a longer one, one that is finished already."""
    said = []
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        home = tmp_path_factory.mktemp("home")
        patch.setenv("HOME", str(home))
        patch.chdir(home)
        for num_steps in (2, 4, 4):
            with contextlib.redirect_stderr(io.StringIO()) as stderr:
                train(dataclasses.replace(short, num_steps=num_steps), "~/run", one)
            said.append(stderr.getvalue())
    return home, said


def test_a_training_says_what_it_begins(lines):
    home, (new, longer, finished) = lines
    assert f"tiny: 8 parameters on 1 x cpu, starting at step 0 of 2, in {home / 'run'}" in new
    assert "data: Digits, 1,437 grey images of 8x8, 16 in a step" in new
    assert "resuming at step 2 of 4" in longer
    assert (
        f"{home / 'run'} is at step 4 of 4 already: nothing is left to train; train longer with --num-steps 8"
        in finished
    )


def test_a_training_says_that_it_draws_and_what_with(lines):
    _, (new, longer, _) = lines
    assert "step 2/2  drawing 1 sample ..." in new
    assert re.search(r"00000002.png: ema: after 2 steps 100% of the average 0.9999 is still the weights", new)
    assert re.search(r"00000004.png: ema: after 4 steps 100% of the average", longer)


def test_a_run_that_is_read_says_so(lines, one):
    home, _ = lines
    with pytest.warns(UserWarning, match="ema: after 4 steps 100% of the average 0.9999 is still the weights"):
        load_run(home / "run", one)


def test_the_defaults_say_nothing_of_the_kind(short, one, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train(dataclasses.replace(short, ema=Ema(), num_steps=4, schedule=schedule.Cosine(20)), tmp_path / "run", one)
        load_run(tmp_path / "run", one)


def test_drawing_says_how_far_it_is(lines, one):
    home, _ = lines
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = load_run(home / "run", one)
    reached = []
    run.sample(jax.random.key(0), 5, chunk=2, reached=reached.append)
    assert reached == [2, 4, 5]


def test_ddpm_jax_sample_says_how_far_it_is(lines, capsys, monkeypatch):
    home, _ = lines
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(progress, "PAUSE", 0.01)
    main.main(["sample", "~/run", "--num-images", "3", "--output", "~/drawn/images.npz"])
    assert re.search(r"drawing: 0 of 3, \d+s so far", capsys.readouterr().err)
    assert (home / "drawn" / "images.npz").exists()
    assert [entry.name for entry in home.iterdir() if entry.name.startswith("~")] == []


def test_a_long_task_is_told_of_line_by_line(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PAUSE", 0.02)
    with progress.ProgressBar("drawing", 1000) as waiting:
        progress.time.sleep(0.1)
        waiting.reached(500)
        progress.time.sleep(0.1)
    text = capsys.readouterr().err
    assert "drawing: 0 of 1,000, 0s so far" in text
    assert "drawing: 500 of 1,000, 0s left" in text
    progress.time.sleep(0.1)
    assert capsys.readouterr().err == ""
