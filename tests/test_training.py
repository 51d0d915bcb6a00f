"""A step is what its equations say, on any number of devices; a run is a function of (seed, config, step)."""

import dataclasses
import json
from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import Labelled, mesh_of, run_of

import ddpm_jax
from ddpm_jax.data import Npz
from ddpm_jax.data.accept import check_labels
from ddpm_jax.data.stream import batches
from ddpm_jax.devices.mesh import global_batch, shardings
from ddpm_jax.diffusion.objective import FullBound, Hybrid, SquaredError
from ddpm_jax.diffusion.schedule import Cosine
from ddpm_jax.diffusion.timesteps import LossAwareTimesteps
from ddpm_jax.diffusion.variance import FixedLarge, FixedSmall, LearnedRange
from ddpm_jax.diffusion.weighting import Vlb
from ddpm_jax.errors import RunError
from ddpm_jax.nets import Network
from ddpm_jax.nets.unet import UNet
from ddpm_jax.sampling import Ancestral
from ddpm_jax.storage import specs
from ddpm_jax.storage.checkpoint import Checkpoints
from ddpm_jax.training.generate import draw_images
from ddpm_jax.training.loop import train
from ddpm_jax.training.optimizer import Adam
from ddpm_jax.training.resume import as_trees, check_resumable, start_state


@cache
def program(experiment, devices: int):
    """(mesh, recipe, where the state lies, the compiled step) of an experiment with any seed."""
    plan = experiment.plan(mesh_of(devices))
    return plan.mesh, plan.recipe, shardings(plan.state), plan.step()


def steps(experiment, count: int, devices: int):
    """The state and the losses after `count` steps on `devices` devices."""
    mesh, recipe, placed, step = program(dataclasses.replace(experiment, seed=0), devices)
    params = experiment.net.init(jax.random.key(1), experiment.image_shape)
    state, losses = jax.device_put(recipe.start(params), placed), []
    stream = batches(experiment.data, experiment.batch_size, experiment.seed)
    for _ in range(count):
        state, metrics = step(
            state, global_batch(mesh, next(stream), experiment.batch_size), jax.random.key(experiment.seed)
        )
        losses.append(float(metrics["loss"]))  # and so in step: virtual devices may not run far ahead
    return jax.device_get(state), losses


@pytest.mark.slow
def test_a_run_is_a_function_of_its_seed(tiny):
    first, again = (steps(tiny, 5, devices=1)[1] for _ in range(2))
    assert first == again
    assert steps(dataclasses.replace(tiny, seed=1), 1, devices=1)[1][0] != first[0]


@pytest.mark.slow  # below a network of one number learns, and test_committed_run.py trains a U-Net
def test_training_learns(tiny):
    _, losses = steps(tiny, 60, devices=1)
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])


def test_the_learning_rate_rises_then_falls():
    rate = Adam(learning_rate=0.5, warmup_steps=10, decay="cosine").schedule(num_steps=110)
    assert [float(rate(step)) for step in (0, 5, 10, 60, 110)] == pytest.approx([0, 0.25, 0.5, 0.25, 0], abs=1e-7)
    constant = Adam(learning_rate=0.5, warmup_steps=0).schedule(num_steps=110)
    assert float(constant(0)) == float(constant(1000)) == 0.5


def test_a_long_gradient_is_clipped_before_adam():
    """Twice the clipped gradient gives the same update; with clipping off, Adam's moments differ."""
    params, long = {"w": jnp.zeros(4)}, {"w": jnp.full(4, 30.0)}
    for clip, equal in ((1.0, True), (None, False)):
        update = Adam(warmup_steps=0, clip_norm=clip).build(10)
        moments = [
            optax.tree.get(update.update(g, update.init(params), params)[1], "mu")["w"]
            for g in (long, {"w": 2 * long["w"]})
        ]
        assert bool(jnp.allclose(moments[0], moments[1])) is equal


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Adam(learning_rate=0.0), "learning_rate is 0.0; expected more than 0"),
        (lambda: Adam(warmup_steps=-1), "warmup_steps is -1; expected 0 or more"),
        (lambda: Adam(decay="linear"), "decay is 'linear'; expected one of 'constant', 'cosine'"),  # type: ignore[arg-type]
        (lambda: Adam(clip_norm=0.0), "clip_norm is 0.0; expected None or more than 0"),
    ],
)
def test_a_wrong_value_is_named(unchecked, make, message):
    with pytest.raises(ValueError, match="expected") as error:
        make()
    assert message in str(error.value)


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_all_that_it_says(finished):
    assert [entry["step"] for entry in metrics_of(finished)] == [2, 3, 4, 6]
    assert sorted(path.name for path in (finished / "checkpoints").iterdir() if path.name.isdigit()) == ["3", "6"]
    assert (finished / "samples" / "00000006.png").stat().st_size > 0
    assert list((finished / "tensorboard").glob("events*"))


@pytest.mark.slow  # test_committed_run.py resumes a smaller run
@pytest.mark.usefixtures("no_pictures")
def test_stopped_and_started_again_is_bitwise_the_same(tiny, one, finished, tmp_path):
    """Training to step 3, then again to 6, gives the same state and the same metrics as 6 steps at once."""
    train(dataclasses.replace(tiny, num_steps=3), tmp_path / "run", one)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 0.0}\n{"step": 5, "lo')  # what a killed run may have left behind
    train(tiny, tmp_path / "run", one)
    whole, parts = (ddpm_jax.load_run(folder, one) for folder in (finished, tmp_path / "run"))
    assert (whole.step, parts.step) == (6, 6)
    jax.tree.map(np.testing.assert_array_equal, whole.params, parts.params)
    losses = [
        [(entry["step"], entry["loss"]) for entry in metrics_of(folder)] for folder in (finished, tmp_path / "run")
    ]
    assert dict(losses[1])[6] == dict(losses[0])[6]
    assert [step for step, _ in losses[1]] == [2, 3, 4, 6]


def test_another_model_is_refused_and_nothing_changes(tiny, finished):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    other = dataclasses.replace(tiny, net=dataclasses.replace(tiny.net, channels=16), batch_size=32)
    with pytest.raises(RunError) as error:
        train(other, finished)
    assert "net.channels: 8 there, 16 here" in str(error.value)
    assert "batch_size: 16 there, 32 here" in str(error.value)
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Scale(Network):
    """The smallest network: its output is z_t times one number."""

    def init(self, key, image_shape):
        return {"factor": jnp.zeros(())}

    def bind(self, params):
        return lambda z_t, t: params["factor"] * z_t


def test_a_lost_run_stops_with_the_step_and_the_remedy(tiny, one, tmp_path):
    hot = Adam(learning_rate=1e30, warmup_steps=3)
    lost = dataclasses.replace(tiny, net=Scale(), optimizer=hot, checkpoint_every=1, log_every=1)
    with pytest.raises(RunError) as error:
        train(lost, tmp_path / "run", one)
    assert "training diverged: at step 3 the loss is inf" in str(error.value)
    assert "The last good checkpoint is that of step 2." in str(error.value)
    assert "--optimizer.learning-rate" in str(error.value)


@pytest.mark.usefixtures("no_pictures")
def test_a_network_needs_no_more_than_init_and_bind(tiny, one, tmp_path):
    """Any spec with the two methods is trained, saved, read and sampled; here its factor is learned."""
    experiment = dataclasses.replace(tiny, net=Scale(), num_steps=30, optimizer=Adam(learning_rate=0.1, warmup_steps=0))
    train(experiment, tmp_path / "run", one)
    run = ddpm_jax.load_run(tmp_path / "run", one)
    assert 0.3 < float(run.params["factor"]) < 1.5
    assert run.sample(jax.random.key(0), 2).shape == (2, 8, 8, 1)


@pytest.fixture(scope="module")
def labelled(tiny, one):
    """A run whose network has classes and takes no time to compile."""
    return run_of(tiny, Labelled(), one)


def test_samples_of_a_run_continue_each_other(labelled, key):
    run = labelled
    first, rest, together = run.sample(key, 3), run.sample(key, 5, first_index=3), run.sample(key, 8)
    np.testing.assert_allclose(np.concatenate([first, rest]), together, atol=1e-5)
    assert together.shape == (8, 8, 8, 1)
    assert np.abs(together).max() <= 1


def test_the_network_of_a_run_is_the_averaged_one(finished, labelled, one):
    averaged = as_trees(specs.load(finished / "experiment.json").plan(one).state)["ema"]
    checkpoints = Checkpoints(finished / "checkpoints")
    stored = checkpoints.restore(6, lambda about: {"ema": averaged})["ema"]["params"]
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, ddpm_jax.load_run(str(finished), one).params, stored)
    run = labelled
    z, labels = jnp.ones((2, 8, 8, 1)), np.array([0, 1])
    model = run.model(labels)
    expected = run.experiment.net.bind(run.params, labels=labels)(z, 3)
    np.testing.assert_array_equal(model.predict(z, 3), expected)
    assert model.process.num_steps == 20
    parts = (run.experiment.target, run.experiment.variance, run.experiment.clip)
    assert (model.target, model.variance, model.clip) == parts
    guided = run.model(labels, guidance=1.0)
    np.testing.assert_allclose(guided.output(z, 3)[0], expected, atol=1e-5)


def test_labels_choose_the_class(labelled, key):
    run = labelled
    in_turn, given = run.sample(key, 8), run.sample(key, 8, labels=np.array([0, 1, 2, 3, 4, 5, 7, 7]))
    np.testing.assert_array_equal(in_turn[:6], given[:6])
    assert np.any(in_turn[6] != given[6])
    with pytest.raises(ValueError, match=r"labels is .*; expected 2 integers in 0..9"):
        run.sample(key, 2, labels=np.array([0, 10]))


def test_parts_that_do_not_fit_are_named_before_anything_is_written(tiny, tmp_path):
    images = np.zeros((20, 9, 8, 1), np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    data = Npz(str(tmp_path / "images.npz"))
    cases = {
        "image height is 9": dataclasses.replace(
            tiny, data=data, net=dataclasses.replace(tiny.net, channel_multipliers=(1, 2))
        ),
        "num_classes is 3, but the first example has label": dataclasses.replace(
            tiny, net=UNet(channels=8, num_classes=3, channel_multipliers=(1, 2))
        ),
        "num_steps is 50; expected 1 to 20": dataclasses.replace(
            tiny, sampler=dataclasses.replace(tiny.sampler, num_steps=50)
        ),
        "batch_size is 12, which 8 devices cannot share equally; try 8 or 16": dataclasses.replace(tiny, batch_size=12),
    }
    for message, experiment in cases.items():
        with pytest.raises(ValueError, match=message):
            train(experiment, tmp_path / "run", mesh_of(8))
        assert not (tmp_path / "run").exists()


def test_a_step_that_cannot_be_traced_leaves_nothing_behind(tiny, one, tmp_path):
    twice = dataclasses.replace(tiny, net=dataclasses.replace(tiny.net, out_multiplier=2))
    with pytest.raises(ValueError, match="the network returned shape"):
        train(twice, tmp_path / "run", one)
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_checkpoint_can_be_taken_by_another_run(tiny, tmp_path):
    specs.save(tiny, tmp_path / "experiment.json")
    check_resumable(dataclasses.replace(tiny, batch_size=32), tmp_path)


def test_a_label_that_is_no_class_is_named(tiny):
    batch = {"image": np.zeros((2, 8, 8, 1), np.uint8), "label": np.array([3, 10]), "name": np.array(["a", "b"])}
    with pytest.raises(ValueError, match=r"the data have the label 10; net.num_classes is 10"):
        check_labels(batch, 10)
    check_labels({**batch, "label": np.array([3, 9])}, 10)
    check_labels(batch, None)


def test_a_part_of_the_wrong_kind_is_named(unchecked, tiny):
    with pytest.raises(ValueError, match=r"sampler is .*; expected a Sampler, such as Ancestral\(\)"):
        dataclasses.replace(tiny, sampler=tiny.ema)


# A learned variance, the loss that teaches it, and timesteps drawn by the losses that have been.


@dataclass(frozen=True)
class ScaleAndSpread(Network):
    """The smallest network with a variance: a factor of z_t for each timestep, and a number for each spread."""

    def init(self, key, image_shape):
        return {"factor": 0.1 * jax.random.normal(key, (5,)), "spread": jnp.zeros(5)}

    def bind(self, params):
        def predict(z_t, t):
            factor, spread = (params[name][t].reshape(-1, 1, 1, 1) for name in ("factor", "spread"))
            return jnp.concatenate([factor * z_t, jnp.broadcast_to(spread, z_t.shape)], axis=-1)

        return predict


@pytest.fixture(scope="module")
def learned(tiny):
    """The whole of it, in a chain so short that every timestep has its losses after a step or two."""
    return dataclasses.replace(
        tiny,
        net=ScaleAndSpread(),
        schedule=Cosine(num_steps=4),
        variance=LearnedRange(),
        objective=Hybrid(vlb_weight=0.1),
        timesteps=LossAwareTimesteps(length=2),
        sampler=Ancestral(),
        sample_every=100,
    )


@pytest.mark.slow
def test_a_learned_variance_is_trained_the_same_on_one_and_eight_devices(learned):
    """The losses, the parameters and what is remembered of the losses, which are those of the global batch."""
    learned = dataclasses.replace(learned, optimizer=Adam(learning_rate=0.1, warmup_steps=0))
    (one, losses), (eight, again) = (steps(learned, 5, devices) for devices in (1, 8))
    np.testing.assert_allclose(losses, again, atol=1e-5)
    for name in ("params", "ema_params", "timesteps"):
        for ours, theirs in zip(*(jax.tree.leaves(getattr(state, name)) for state in (one, eight)), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert one.timesteps.count.sum() == 5 * learned.batch_size
    assert one.timesteps.count.min() >= 2
    p = learned.timesteps.probabilities(one.timesteps)
    assert np.ptp(p) > 0.01
    assert np.all(np.abs(one.params["spread"][1:]) > 0.01)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_what_is_remembered_of_the_losses_is_saved_and_found_again(learned, one, tmp_path):
    """A run stopped and started again ends with bitwise the state, losses remembered and all, of one that was not."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(learned, whole, one)
    train(dataclasses.replace(learned, num_steps=3), parts, one)
    train(learned, parts, one)
    states = []
    for folder in (whole, parts):
        checkpoints = Checkpoints(folder / "checkpoints", learned.keep_last, learned.keep_every)
        state, _ = start_state(learned.plan(one), checkpoints, report=pytest.fail)
        states.append(jax.device_get(state))
        checkpoints.close()
    assert [int(state.step) for state in states] == [6, 6]
    assert states[0].timesteps.count.sum() == 6 * learned.batch_size
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.slow  # test_variance.py samples with smaller networks
def test_a_unet_with_a_variance_is_trained_and_sampled(tiny, learned, one):
    """Its output has the variance's channels, which the loss and the sampler take."""
    experiment = dataclasses.replace(learned, net=dataclasses.replace(tiny.net, out_multiplier=2))
    experiment.plan(one).step()
    params = experiment.net.init(jax.random.key(1), experiment.image_shape)
    x = draw_images(experiment, params, experiment.image_shape, jax.random.key(0), 2, one)
    assert x.shape == (2, 8, 8, 1)
    assert np.all(np.isfinite(x))


def test_a_variance_that_nothing_teaches_is_an_error(tiny, learned):
    fixed = dataclasses.replace(learned, net=tiny.net, variance=FixedSmall(), objective=SquaredError())
    cases = {
        r"variance is LearnedRange\(\), which SquaredError does not train; use Hybrid\(\) or FullBound\(\)": (
            dataclasses.replace(learned, objective=SquaredError())
        ),
        r"objective is Hybrid, which trains a variance; variance is FixedLarge\(\), fixed": (
            dataclasses.replace(learned, variance=FixedLarge())
        ),
        r"objective.weighting.variance is FixedLarge\(\); variance is FixedSmall\(\)": (
            dataclasses.replace(fixed, objective=SquaredError(Vlb(FixedLarge())))
        ),
    }
    for message, experiment in cases.items():
        with pytest.raises(ValueError, match=message):
            experiment.check()
    for fits in (
        learned,
        dataclasses.replace(learned, objective=FullBound()),
        dataclasses.replace(fixed, objective=FullBound()),
        dataclasses.replace(fixed, objective=SquaredError(Vlb())),
        dataclasses.replace(fixed, variance=FixedLarge(), objective=SquaredError(Vlb(FixedLarge()))),
    ):
        fits.check()


def test_a_learned_variance_needs_twice_the_channels(tiny, learned, one, tmp_path):
    with pytest.raises(ValueError, match=r"LearnedRange expects \(16, 8, 8, 2\) \(a network with out_multiplier=2\)"):
        train(dataclasses.replace(learned, net=tiny.net), tmp_path / "run", one)
    assert not (tmp_path / "run").exists()
