"""Averages are the weighted sums that their profiles say, and one never kept comes back from snapshots of others."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from helpers import Factors, averages_of

import ddpm_jax
from ddpm_jax.cli import main
from ddpm_jax.cli.train import TrainOptions
from ddpm_jax.errors import RunError
from ddpm_jax.storage import specs
from ddpm_jax.storage.checkpoint import Checkpoints
from ddpm_jax.storage.errors import CheckpointError
from ddpm_jax.training.average import Ema, PowerEma, gamma_of, width_of
from ddpm_jax.training.loop import train
from ddpm_jax.training.optimizer import Adam
from ddpm_jax.training.posthoc import coefficients, cosines, fit_error, norms
from ddpm_jax.training.snapshots import Snapshots, combine

WIDTHS = (0.01, 0.05, 0.1, 0.2, 0.28, 1 / np.sqrt(12))
PAIR = (0.10, 0.05)


def quadrature():
    """Nodes in [0, 1] and weights of Gauss and Legendre, exact for polynomials of degree 299."""
    nodes, weights = np.polynomial.legendre.leggauss(150)
    return (nodes + 1) / 2, weights / 2


# The recursions.


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_is_the_weighted_sum_of_all_parameters(warmup):
    """From e_0 = p_0, e_k = d_k e_{k-1} + (1 - d_k) p_k; unrolled, the weights of p_0..p_n sum to 1."""
    ema, values = Ema(decay=0.8, warmup=warmup), [3.0, 1.0, -2.0, 5.0]
    weights = np.array([1.0, 0, 0, 0])
    for step in range(1, 4):
        decay = min(0.8, (1 + step) / (10 + step)) if warmup else 0.8
        weights *= decay
        weights[step] = 1 - decay
    assert weights.sum() == pytest.approx(1)
    assert averages_of(ema, values)[-1, 0] == pytest.approx(weights @ np.array(values), rel=1e-6)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_weights_are_the_profile_integrated_over_each_step(width):
    """Unrolled: parameters that are 1 at one step only give that step's weight; e_0 is forgotten."""
    t, gamma = 12, gamma_of(width)
    weights = averages_of(PowerEma(width, ()), np.eye(t + 1))[-1, 0]
    integrals = np.diff((np.arange(t + 1) / t) ** (gamma + 1))
    np.testing.assert_allclose(weights, [0, *integrals], rtol=2e-6, atol=1e-7)


def test_the_newest_share_is_accurate_in_float32_after_ten_million_steps():
    for width in WIDTHS:
        for step in (1, 2, 1000, 123_457, 10_000_000):
            (share,) = PowerEma(width, ()).shares(jnp.int32(step))
            exact = -np.expm1((gamma_of(width) + 1) * np.log1p(-1 / step)) if step > 1 else 1.0
            assert share.dtype == jnp.float32
            assert float(share) == pytest.approx(exact, rel=1e-6), (width, step)


@pytest.mark.parametrize(
    "averaging", [Ema(0.9, others=(0.5, 0.99)), Ema(0.9, True, (0.5,)), PowerEma(0.1, (0.05, 0.2))], ids=str
)
def test_several_at_once_are_each_alone(averaging):
    values = np.random.default_rng(0).normal(size=40)
    together = averages_of(averaging, values)
    name = dataclasses.fields(averaging)[0].name
    for index, profile in enumerate(averaging.profiles):
        alone = dataclasses.replace(averaging, **{name: profile}, others=())
        np.testing.assert_allclose(together[:, index], averages_of(alone, values)[:, 0], atol=1e-6)


# Widths.


def test_each_width_belongs_to_one_gamma():
    gammas = np.array([0, 1e-3, 0.1, 1, 6.94, 16.97, 100, 5000])
    widths = np.array([width_of(gamma) for gamma in gammas])
    assert np.all(np.diff(widths) < 0)
    np.testing.assert_allclose([gamma_of(width) for width in widths], gammas, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose([width_of(gamma_of(width)) for width in WIDTHS], WIDTHS, rtol=1e-10)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_width_is_the_standard_deviation_of_its_profile(width):
    """By Gauss-Legendre quadrature in u, where tau = u^2."""
    gamma = gamma_of(width)
    u, weights = quadrature()
    tau = u**2
    density = (gamma + 1) * tau**gamma * 2 * u
    mean = np.sum(weights * density * tau)
    assert np.sum(weights * density) == pytest.approx(1)
    assert np.sqrt(np.sum(weights * density * (tau - mean) ** 2)) == pytest.approx(width, rel=1e-8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ema(decay=1.0), "decay is 1.0; expected 0 or more, less than 1"),
        (lambda: Ema(others=(0.5, -0.1)), "others is -0.1; expected 0 or more, less than 1"),
        (lambda: Ema(0.9, others=(0.9,)), "others is (0.9,); expected numbers that differ from decay, 0.9"),
        (lambda: PowerEma(width=0.3), "width is 0.3; expected 0.0001 to 0.2886"),
        (lambda: PowerEma(width=float("nan")), "width is nan; expected 0.0001 to 0.2886"),
        (lambda: PowerEma(others=(0.0,)), "others is 0.0; expected 0.0001 to 0.2886"),
        (lambda: PowerEma(others=(0.2, 0.2)), "others is (0.2, 0.2); expected numbers that differ from width, 0.1"),
        (lambda: PowerEma(snapshot_every=0), "snapshot_every is 0; expected a whole number, at least 1"),
        (lambda: coefficients([0.1], [0], 0.1, 5), "steps is (0,); expected 1 or more each"),
        (lambda: coefficients([], [], 0.1, 5), "steps is (); expected a step for each width"),
        (lambda: coefficients([0.1], [3], 0.5, 5), "width is 0.5; expected 0.0001 to 0.2886"),
    ],
)
def test_a_wrong_value_is_named(unchecked, make, message):
    with pytest.raises(ValueError, match="expected") as error:
        make()
    assert message in str(error.value)


# The fit.


def grid(count: int, last: int, widths=PAIR) -> tuple[list[float], list[int]]:
    """The widths and steps of `count` evenly spaced snapshots up to step `last`."""
    steps = np.linspace(0, last, count + 1)[1:].round().astype(int)
    return list(np.tile(widths, count)), [int(step) for step in np.repeat(steps, len(widths))]


def test_the_inner_products_are_those_of_quadrature():
    """With tau = a u^2 on the shorter interval, the longer profile having no corner there."""
    cases = [
        (0.1, 30, 0.05, 50),
        (0.05, 30, 0.1, 50),
        (0.28, 7, 0.02, 8),
        (1 / np.sqrt(12), 5, 0.2, 5),
        (0.1, 9, 0.1, 9),
    ]
    u, weights = quadrature()
    for width, a, other, b in cases:
        g, h = gamma_of(width), gamma_of(other)
        tau, slope = a * u**2, 2 * a * u
        p, q = (g + 1) * (tau / a) ** g / a, (h + 1) * (tau / b) ** h / b
        arrays = [np.array([float(value)]) for value in (g, a, h, b)]
        product = cosines(*arrays)[0, 0] * norms(*arrays[:2])[0] * norms(*arrays[2:])[0]
        assert product == pytest.approx(np.sum(weights * slope * p * q), rel=1e-8)
        assert cosines(*arrays[2:], *arrays[:2])[0, 0] == pytest.approx(cosines(*arrays)[0, 0], rel=1e-12)


def test_one_that_was_kept_is_itself():
    widths, steps = grid(20, 1000)
    for index in (0, 21, 39):
        c = coefficients(widths, steps, widths[index], steps[index])
        np.testing.assert_allclose(c, np.eye(40)[index], atol=1e-8)
        assert fit_error(c, widths, steps, widths[index], steps[index]) < 1e-6


def test_the_fit_is_the_best_there_is():
    """No other coefficients of sum 1 have a smaller error."""
    problem = (*grid(6, 60), 0.2, 60)
    c = coefficients(*problem)
    assert c.sum() == pytest.approx(1, abs=1e-14)
    for change in np.random.default_rng(0).normal(size=(50, len(c))):
        for size in (1e-3, 1e-1):
            other = c + size * (change - change.mean())
            assert fit_error(other, *problem) > fit_error(c, *problem)


@pytest.mark.parametrize("width", [0.03, 0.07, 0.15, 0.25])
def test_more_snapshots_fit_better_and_coefficients_stay_small(width):
    """At 200 snapshots of two widths, too: small coefficients, so rounding errors are not blown up."""
    errors = []
    for count in (5, 10, 20, 40, 200):
        problem = (*grid(count, 10_000), width, 10_000)
        c = coefficients(*problem)
        errors.append(fit_error(c, *problem))
        assert np.abs(c).sum() < 20
        assert abs(c.sum() - 1) < 1e-13
    assert np.all(np.diff(errors) < 0)
    assert errors[3] < 0.03
    assert errors[4] < 0.005


@pytest.mark.parametrize("width", [0.03, 0.05, 0.075, 0.1, 0.15, 0.2])
def test_forty_snapshots_fit_any_common_width(width):
    """Within 1%, from the widths that are kept unless others are asked for."""
    kept = PowerEma()
    steps = np.repeat(np.arange(1, 41) * 20_000, len(kept.profiles)).tolist()
    problem = list(kept.profiles) * 40, steps, width, 800_000
    assert fit_error(coefficients(*problem), *problem) < 0.01


@pytest.fixture(scope="module")
def trajectory():
    """A known walk of parameters over 2000 steps, and averages of it that are kept, and one that is not."""
    rng = np.random.default_rng(0)
    values = np.cumsum(rng.normal(size=2001)) / 30 + rng.normal(size=2001)
    averaging = PowerEma(0.1, (0.05, 0.2, 0.03))
    return values, averages_of(averaging, values)


@pytest.mark.parametrize(("column", "width", "at"), [(2, 0.2, 2000), (3, 0.03, 2000), (2, 0.2, 1500)])
def test_a_width_never_kept_is_made_from_snapshots_of_two(trajectory, column, width, at):
    """The error falls with denser snapshots, and is never more than the profile's error says (Cauchy and Schwarz).

    With 40 snapshots it is below 1% of the spread of the parameters, although each step's noise is in it.
    """
    values, kept = trajectory
    exact, errors = kept[at - 1, column], []
    for count in (5, 10, 20, 40):
        widths, steps = grid(count, 2000)
        c = coefficients(widths, steps, width, at)
        snapshots = np.array([kept[step - 1, PAIR.index(name)] for name, step in zip(widths, steps, strict=True)])
        errors.append(abs(c @ snapshots - exact))
        size = norms(np.array([gamma_of(width)]), np.array([float(at)]))[0]
        spread = np.sqrt(np.sum((values[1:] - values[1:].mean()) ** 2))
        assert errors[-1] <= fit_error(c, widths, steps, width, at) * size * spread + 1e-5
    assert errors[3] < errors[0]
    assert errors[3] < 0.01 * np.std(values)


def test_what_does_not_change_comes_back_exactly():
    for width in (0.02, 0.2):
        c = coefficients(*grid(100, 5000), width, 5000)
        assert float(np.sum(c * 7.25)) == pytest.approx(7.25, rel=1e-13)


# Runs.


@pytest.fixture(scope="module")
def walk(tiny):
    """An experiment whose parameters walk far and whose averages of widths 0.10 and 0.05 go into snapshots."""
    return dataclasses.replace(
        tiny,
        net=Factors(),
        optimizer=Adam(learning_rate=0.05, warmup_steps=0),
        ema=PowerEma(snapshot_every=4),
        num_steps=50,
        log_every=100,
        checkpoint_every=12,
        sample_every=1000,
        keep_last=3,
        num_samples=1,
    )


@pytest.fixture(scope="module")
def walked(walk, one, tmp_path_factory):
    folder = tmp_path_factory.mktemp("walked") / "run"
    train(walk, folder, one)
    return folder


@pytest.fixture(scope="module")
def direct(walk, one, tmp_path_factory):
    """The same run, but it keeps widths 0.15 and 0.07 itself."""
    folder = tmp_path_factory.mktemp("direct") / "run"
    train(dataclasses.replace(walk, ema=PowerEma(0.15, (0.07,), snapshot_every=50)), folder, one)
    return folder


def snapshots_of(folder, one, profiles=PAIR):
    """Every average in every snapshot of a run of `walk`, by (step, item)."""
    store = Checkpoints(folder / "snapshots")
    shape = jax.ShapeDtypeStruct((8, 1, 1), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    like = {name: {"params": {"factors": shape}} for name in ("ema", "ema_1")}
    read = {step: store.restore(step, lambda about: like) for step in store.steps()}
    store.close()
    return {(step, name): np.asarray(trees[name]["params"]["factors"]) for step, trees in read.items() for name in like}


def test_snapshots_are_taken_when_due_and_at_the_end(walked, one):
    steps = [step for step, name in snapshots_of(walked, one) if name == "ema"]
    assert sorted(steps) == [*range(4, 49, 4), 50]


@pytest.mark.slow
def test_a_width_that_a_run_did_not_keep_is_nearly_that_of_one_that_did(walked, direct, one):
    """Nearly: 1% of how far apart the averages of 0.15 and 0.07 are."""
    made = [ddpm_jax.load_run(walked, one, ema=width) for width in (0.15, 0.07)]
    kept = [ddpm_jax.load_run(direct, one, ema=width) for width in (0.15, 0.07)]
    assert [run.ema for run in made] == [run.ema for run in kept] == [0.15, 0.07]
    assert {run.step for run in made + kept} == {50}
    apart = np.abs(kept[0].params["factors"] - kept[1].params["factors"]).max()
    assert apart > 1e-3
    for ours, theirs in zip(made, kept, strict=True):
        assert ours.params["factors"].dtype == jnp.float32
        np.testing.assert_allclose(ours.params["factors"], theirs.params["factors"], atol=0.02 * apart)


def test_the_first_profile_is_read_unless_asked_otherwise(walked, one):
    main, same, other = (ddpm_jax.load_run(walked, one, ema=ema) for ema in (None, 0.10, 0.05))
    snapshots = snapshots_of(walked, one)
    assert main.ema == 0.10
    for run, name in ((main, "ema"), (same, "ema"), (other, "ema_1")):
        np.testing.assert_array_equal(run.params["factors"], snapshots[50, name])


@pytest.mark.slow
def test_a_killed_run_has_the_snapshots_of_an_unbroken_one(walk, walked, one, tmp_path):
    """Killed after step 50, its newest checkpoint being 36, whose snapshot is not on disk yet; one later is damaged."""
    folder = tmp_path / "run"
    shutil.copytree(walked, folder)
    for left_out in ("checkpoints/48", "checkpoints/50", "snapshots/36"):
        shutil.rmtree(folder / left_out)
    damage(folder / "snapshots" / "44")
    train(walk, folder, one)
    ours, theirs = snapshots_of(folder, one), snapshots_of(walked, one)
    assert ours.keys() == theirs.keys()
    for place in ours:
        np.testing.assert_array_equal(ours[place], theirs[place])


def test_what_is_set_aside_is_told_apart_and_does_not_pile_up(tmp_path):
    """Snapshots later than the checkpoint after a kill are made again: the newest of each stays, under its name."""
    average = ({"w": jnp.zeros(3)},)
    for _ in range(2):
        snapshots = Snapshots(tmp_path, PowerEma(snapshot_every=4), 12)
        (tmp_path / "snapshots" / "8.orbax-checkpoint-tmp").mkdir(parents=True, exist_ok=True)
        snapshots.resume(0, average)
        for step in (4, 8):
            snapshots.save(step, average)
        snapshots.close()
    assert sorted(path.name for path in (tmp_path / "broken").iterdir()) == ["snapshots-4", "snapshots-8"]
    assert sorted(path.name for path in (tmp_path / "snapshots").iterdir()) == ["4", "8"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax
def test_a_snapshot_that_cannot_be_written_is_told_of_and_the_last_is_tried_again(tmp_path):
    average, said = ({"w": jnp.zeros(3)},), []
    snapshots = Snapshots(tmp_path, PowerEma(snapshot_every=4), 6)
    snapshots.report = said.append
    (tmp_path / "snapshots").write_text("a file in the place of the folder")
    for step in (4, 6):
        snapshots.save(step, average)
    snapshots.wait()
    with pytest.raises(RunError, match=r"the snapshot of step 6 cannot be written to .*same command resumes the run"):
        snapshots.finish(6, average)
    assert [text.partition(" cannot ")[0] for text in said] == [f"the snapshot of step {step}" for step in (4, 6)]
    assert "There is no snapshot yet; training continues without it, and the next is due at step 6" in said[0]
    assert said[1].endswith("it will be tried once more")
    (tmp_path / "snapshots").unlink()
    snapshots.finish(6, average)
    snapshots.close()
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == ["6"]


@pytest.mark.slow
def test_training_ends_with_its_last_snapshot_on_disk(walk, walked, one, tmp_path, monkeypatch):
    """Where the disk was full for a moment, and took the last checkpoint only."""
    folder, save, failed = tmp_path / "run", Checkpoints.save, []
    shutil.copytree(walked, folder)
    for left_out in ("checkpoints/50", "snapshots/50"):
        shutil.rmtree(folder / left_out)

    def failing(checkpoints, step, *rest, **named):
        if checkpoints.folder.name == "snapshots" and not failed:
            failed.append(step)
            return
        save(checkpoints, step, *rest, **named)

    monkeypatch.setattr(Checkpoints, "save", failing)
    train(walk, folder, one)
    assert failed == [50]
    assert (50, "ema") in snapshots_of(folder, one)


def damage(folder):
    """Flip a bit in the middle of every file that holds arrays."""
    for path in folder.rglob("d/*"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 16
        path.write_bytes(content)


@pytest.mark.slow
def test_a_damaged_snapshot_is_reported_and_left_out(walked, one, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(walked, folder)
    whole = ddpm_jax.load_run(folder, one, ema=0.07)
    damage(folder / "snapshots" / "20")
    with pytest.warns(UserWarning, match=r"snapshots: checkpoint 20 .*; the average is made without it"):
        without = ddpm_jax.load_run(folder, one, ema=0.07)
    np.testing.assert_allclose(without.params["factors"], whole.params["factors"], atol=1e-3)
    with pytest.raises(CheckpointError, match="all that it would be made from is damaged"):
        combine([], PAIR, 0.07, 50, None, report=pytest.fail)


@pytest.mark.slow
def test_a_poor_fit_is_reported(walked, one):
    with pytest.warns(UserWarning, match=r"width 0.01 at step 50 is fitted with an error of \d+"):
        ddpm_jax.load_run(walked, one, ema=0.01)


@pytest.fixture(scope="module")
def several(walk, one, tmp_path_factory):
    """The folder of a run that keeps two exponential averages."""
    folder = tmp_path_factory.mktemp("several") / "run"
    train(dataclasses.replace(walk, ema=Ema(0.9, warmup=False, others=(0.5,)), num_steps=6), folder, one)
    return folder


def test_an_average_that_cannot_be_had_is_an_error(walked, several, one, tmp_path):
    for width in (0.3, float("nan"), -1.0):
        with pytest.raises(ValueError, match=r"ema is .*; expected 0.0001 to 0.2886"):
            ddpm_jax.load_run(walked, one, ema=width)
    with pytest.raises(ValueError, match=r"ema is 0.07; expected an average that the run has kept: 0.9, 0.5"):
        ddpm_jax.load_run(several, one, ema=0.07)
    shutil.copytree(walked, tmp_path / "run", ignore=shutil.ignore_patterns("snapshots"))
    with pytest.raises(FileNotFoundError, match=r"no snapshots yet.*; train longer, or take .*: 0.1, 0.05"):
        ddpm_jax.load_run(tmp_path / "run", one, ema=0.07)
    assert ddpm_jax.load_run(tmp_path / "run", one, ema=0.05).ema == 0.05


def test_a_run_keeps_several_decays(several, one):
    main, other = (ddpm_jax.load_run(several, one, ema=decay) for decay in (None, 0.5))
    assert (main.ema, other.ema) == (0.9, 0.5)
    assert np.all(main.params["factors"] != other.params["factors"])
    assert not (several / "snapshots").exists()


@pytest.mark.slow
def test_sample_draws_with_the_average_asked_for(capsys, walked, tmp_path):
    def draw(*flags):
        main.main(["sample", str(walked), "--num-images", "2", "--output", str(tmp_path / "x.npz"), *flags])
        return capsys.readouterr().out

    assert "2 images from step 50 in" in draw()
    assert "2 images from step 50, average 0.07, in" in draw("--ema", "0.07")
    with pytest.raises(SystemExit) as stop:
        draw("--ema", "0.5")
    assert stop.value.code == 2
    assert "ema is 0.5; expected 0.0001 to 0.2886" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("averaging", "flags", "expected"),
    [
        (Ema(), ["--ema.decay", "0.5", "--ema.others", "0.9", "0.99"], Ema(0.5, others=(0.9, 0.99))),
        (PowerEma(), ["--ema.width", "0.2", "--ema.snapshot-every", "9"], PowerEma(0.2, snapshot_every=9)),
    ],
)
def test_the_command_line_overrides_it_and_json_keeps_it(walk, tmp_path, averaging, flags, expected):
    default = TrainOptions(dataclasses.replace(walk, ema=averaging))
    experiment = tyro.cli(TrainOptions, args=flags, default=default).experiment
    assert experiment.ema == expected
    specs.save(experiment, tmp_path / "experiment.json")
    assert specs.load(tmp_path / "experiment.json") == experiment
