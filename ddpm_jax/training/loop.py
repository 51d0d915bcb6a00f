"""The training loop: batches in, steps, metrics, checkpoints and pictures out; started again, it goes on.

A run is a folder:

    experiment.json      what is trained (and a copy of the experiment file, if it defines classes)
    checkpoints/STEP/    the state after STEP steps
    snapshots/STEP/      the averages after STEP steps, kept for good, where the experiment asks for them (PowerEma)
    metrics.jsonl        one line every `log_every` steps
    tensorboard/         the same for TensorBoard
    samples/STEP.png     images drawn with the averaged parameters
    lock                 held while a job trains in it
"""

import os
import traceback
from collections import deque
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ddpm_jax import specs
from ddpm_jax.arrays import stream
from ddpm_jax.check import RunError, require
from ddpm_jax.data.images import to_pixels
from ddpm_jax.data.stream import batches
from ddpm_jax.dryrun import step_flops
from ddpm_jax.evaluation import numbers
from ddpm_jax.experiment import Experiment, conflicts
from ddpm_jax.paths import RunPath, run_path
from ddpm_jax.run import draw_images
from ddpm_jax.training.checkpoint import Checkpoints
from ddpm_jax.training.lock import locked
from ddpm_jax.training.log import Log
from ddpm_jax.training.mesh import broadcast, check_divides, global_batch, shardings, with_sharding
from ddpm_jax.training.snapshots import Snapshots, as_items, from_items
from ddpm_jax.training.state import TrainState
from ddpm_jax.training.step import Recipe, TrainStep, compile_step
from ddpm_jax.training.watch import Meter, Profile, peak_flops

# Steps that may be under way at once: enough to hide the host's work, few enough to stay in step.
STEPS_IN_FLIGHT = 2


def train(
    experiment: Experiment,
    workdir: str | os.PathLike,
    mesh: Mesh | None = None,
    *,
    profile: tuple[int, int] | None = None,
) -> RunPath:
    """Train in the folder `workdir`, from its newest checkpoint if there is one; returns the last picture's path.

    workdir: a local folder, or one of an object store, gs://bucket/run.  mesh: that of the experiment, over all
    devices of all processes, unless given.  profile: the first and the last step of a profiler's trace, written to
    `workdir`/profile.

    Raises ValueError where the experiment does not fit together or the devices, RunError where the
    folder holds another experiment's run or another job trains in it: then nothing on disk has changed.
    Raises RunError also where the loss is lost, or the last checkpoint cannot be written.
    """
    workdir, mesh = run_path(workdir), mesh or experiment.mesh.build()
    experiment.check()
    check_divides(mesh, experiment.batch_size, experiment.accumulate)
    check_resumable(experiment, workdir)
    trace = Profile(workdir / "profile", profile)
    step, (shapes, *_) = prepare_step(experiment, mesh, experiment.image_shape)
    workdir.mkdir(parents=True, exist_ok=True)
    with locked(workdir, report=print):
        check_resumable(experiment, workdir)  # again: the one who held the lock may have written
        return train_locked(experiment, step, shapes, workdir, mesh, trace)


def train_locked(
    experiment: Experiment, step: TrainStep, shapes: Any, workdir: RunPath, mesh: Mesh, trace: Profile
) -> RunPath:
    """`train`, once all is checked and the folder is locked."""
    is_first = jax.process_index() == 0
    if is_first:
        specs.save(experiment, workdir / "experiment.json")

    checkpoints = Checkpoints(workdir / "checkpoints", experiment.keep_last, experiment.keep_every)
    checkpoints.remove_leftovers()
    snapshots = Snapshots(workdir, experiment.ema, experiment.num_steps)
    state = start_state(experiment, shapes, checkpoints)
    snapshots.resume(int(state.step), state.ema_params)
    log = Log(workdir, int(state.step), experiment.num_steps, quiet=not is_first)
    checkpoints.report = log.say
    checkpoints.check_space(state)
    try:
        state = run_steps(experiment, step, mesh, state, checkpoints, snapshots, log, trace)
        picture = log.picture_path(int(state.step))
        if not broadcast(picture.exists()):
            draw_picture(experiment, state, mesh, log)  # the run was killed between its last step and this
        checkpoints.finish(int(state.step), as_trees(state), about_run(experiment))
    except FloatingPointError as error:
        raise RunError(f"{error}, {made_in(error)}; found by --debug-nans") from error
    finally:
        log.close()
        snapshots.close()
        checkpoints.close()
    return picture


def made_in(error: Exception) -> str:
    """The lines that led to an error, innermost first, as "in clip_fn (_clipping.py, line 105), from step (...)"."""
    frames = traceback.extract_tb(error.__traceback__)
    outside_jax = [frame for frame in reversed(frames) if "/jax/" not in Path(frame.filename).as_posix()]
    lines = [f"{frame.name} ({Path(frame.filename).name}, line {frame.lineno})" for frame in outside_jax[:4]]
    return "in " + ", from ".join(lines)


def check_resumable(experiment: Experiment, workdir: RunPath) -> None:
    """Raise RunError unless `workdir` is new, or holds a run that this experiment continues."""
    path = workdir / "experiment.json"
    if workdir.exists() and not workdir.is_dir():
        raise RunError(f"{workdir} is a file; --workdir names a folder")
    if not path.exists():
        if (workdir / "checkpoints").exists():
            raise RunError(f"{workdir} holds checkpoints but no experiment.json; choose another --workdir")
        return
    if not any(entry.name.isdigit() for entry in (workdir / "checkpoints").glob("*")):
        return  # nothing was learned yet: another run may take the folder
    try:
        there = specs.load(path)
        require("experiment.json", type(there).__name__, isinstance(there, Experiment), "an Experiment")
    except (ValueError, OSError) as error:
        raise RunError(
            f"{workdir} holds a run whose experiment.json cannot be read ({error}). Put a copy of it back, or choose "
            "another --workdir."
        ) from None
    differing = conflicts(there, experiment)
    if differing:
        listed = "\n".join(f"  {line}" for line in differing)
        raise RunError(
            f"{workdir} holds a run of a different experiment:\n{listed}\n"
            "Choose another --workdir for a new run, or give the values from there to go on with the old one."
        )


def fresh_state(experiment: Experiment, recipe: Recipe, image_shape: tuple[int, int, int]) -> TrainState:
    """The state before the first step."""
    return recipe.start(experiment.net.init(stream(jax.random.key(experiment.seed), "init"), image_shape))


def prepare_step(experiment: Experiment, mesh: Mesh, image_shape: tuple[int, int, int]) -> tuple[TrainStep, Any]:
    """The step for a mesh, and the shapes, dtypes and shardings of what it takes: (state, batch, key).

    It is traced but not compiled: what does not fit is an error now.
    """
    recipe = experiment.recipe()
    state = jax.eval_shape(lambda: fresh_state(experiment, recipe, image_shape))
    state = with_sharding(state, experiment.mesh.place(mesh, state))
    size = experiment.batch_size
    batch = {"image": jax.ShapeDtypeStruct((size, *image_shape), np.uint8)}
    if getattr(experiment.net, "num_classes", None):
        batch["label"] = jax.ShapeDtypeStruct((size,), np.int32)
    shapes = state, batch, jax.eval_shape(lambda: jax.random.key(0))
    step = compile_step(recipe, shardings(state), donate=not jax.config.values["jax_debug_nans"])
    jax.eval_shape(step, *shapes)
    return step, shapes


def start_state(experiment: Experiment, shapes: Any, checkpoints: Checkpoints) -> TrainState:
    """The newest state on disk, or a new one, with the shardings of `shapes`."""
    found = checkpoints.restore_newest(lambda about: as_trees(shapes), report=print)
    if found is None:
        fresh = fresh_state(experiment, experiment.recipe(), experiment.image_shape)
        return jax.device_put(fresh, shardings(shapes))
    step, trees = found
    checkpoints.set_aside(after=step)
    return TrainState(ema_params=from_items(trees), **trees["training"])


def as_trees(state: Any) -> dict[str, Any]:
    """The state as a checkpoint holds it: what sampling needs by itself, and the rest."""
    rest = {name: getattr(state, name) for name in ("step", "params", "opt_state", "timesteps")}
    return {**as_items(state.ema_params), "training": rest}


def about_run(experiment: Experiment) -> dict[str, Any]:
    """What a checkpoint says of itself: what is needed to read it."""
    return {"image_shape": list(experiment.image_shape)}


def run_steps(
    experiment: Experiment,
    step_once: TrainStep,
    mesh: Mesh,
    state: TrainState,
    checkpoints: Checkpoints,
    snapshots: Snapshots,
    log: Log,
    profile: Profile,
) -> TrainState:
    """Take the steps that are left, and write what is due after each."""
    start, last = int(state.step), experiment.num_steps
    meter = Meter(start, experiment.batch_size, mesh.size, flops_where_peak_is_known(experiment))
    key = jax.random.key(experiment.seed)
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    stream_of_batches = batches(experiment.data, experiment.batch_size, experiment.seed, start_step=start, **processes)
    every = experiment.checkpoint_every
    pending: deque[Any] = deque()  # the metrics of the steps since the last record
    for step in range(start + 1, last + 1):
        with meter.waiting():
            batch = next(stream_of_batches)
        with profile.step(step):
            state, metrics = step_once(state, global_batch(mesh, checked(batch, experiment)), key)
        pending.append(metrics)
        if profile.stop(step, metrics):
            log.say(f"the profiler's trace ends at step {step}")
        if step == start + 1:
            jax.block_until_ready(metrics)
            meter.restart(step)  # the first step was spent compiling
        if len(pending) > STEPS_IN_FLIGHT:
            jax.block_until_ready(pending[-1 - STEPS_IN_FLIGHT])
        log.advance(step)
        save, picture = (step % period == 0 or step == last for period in (every, experiment.sample_every))
        keep = snapshots.due(step)
        if save or picture or keep or step % experiment.log_every == 0:
            record(log, meter, step, pending, checkpoints)
        if save:
            log.flush()
            snapshots.wait()
            next_save = min(step + every - step % every, last) if step < last else None
            checkpoints.save(step, as_trees(state), about_run(experiment), next_save)
        if keep:
            snapshots.save(step, state.ema_params)
        if picture:
            draw_picture(experiment, state, mesh, log)
        if save or picture or keep:
            meter.restart(step)
    return state


def checked(batch: dict[str, np.ndarray], experiment: Experiment) -> dict[str, np.ndarray]:
    """The images and labels of a batch.

    Raises ValueError where a label is not a class of the network, which compiled code would not notice.
    """
    num_classes = getattr(experiment.net, "num_classes", None)
    if num_classes is not None:
        wrong = batch["label"][(batch["label"] < 0) | (batch["label"] >= num_classes)]
        if wrong.size:
            raise ValueError(f"the data have the label {wrong[0]}; net.num_classes is {num_classes}")
    return numbers(batch)


def record(log: Log, meter: Meter, step: int, pending: deque[Any], checkpoints: Checkpoints) -> None:
    """Fetch the metrics of the steps before and at `step`, log their means, and empty the queue.

    Raises RunError where the loss of one of them is not finite.
    """
    fetched = jax.device_get(list(pending))
    first = step - len(fetched) + 1
    pending.clear()
    for number, metrics in enumerate(fetched, first):
        if not (np.isfinite(metrics["loss"]) and np.isfinite(metrics["gradient_norm"])):
            checkpoints.wait()
            good = next(iter(checkpoints.steps()), None)
            raise RunError(
                f"the loss is lost: at step {number} it is {metrics['loss']}, the gradient's norm "
                f"{metrics['gradient_norm']}. "
                + (f"The last good checkpoint is that of step {good}. " if good else "There is no checkpoint yet. ")
                + "Try a lower --optimizer.learning-rate, a longer --optimizer.warmup-steps or a smaller "
                "--optimizer.clip-norm in a new --workdir."
            )
    log.metrics(step, summary(fetched) | meter.read(step))
    checkpoints.poll()


def summary(metrics: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """The metrics of several steps as one number each: means; the loss in a quarter of t over all its examples."""
    whole = {name: np.mean([one[name] for one in metrics]) for name in metrics[0] if np.ndim(metrics[0][name]) == 0}
    total, count = (np.sum([one[name] for one in metrics], 0) for name in ("quarter_sum", "quarter_count"))
    quarters = {f"loss_quarter_{i + 1}": total[i] / count[i] for i in range(4) if count[i]}
    return {name: float(value) for name, value in {"loss": whole["loss"], **whole, **quarters}.items()}


def flops_where_peak_is_known(experiment: Experiment) -> int | None:
    """Floating-point operations of a step, on devices whose peak is known; counting takes a second or two."""
    if peak_flops(jax.devices()[0]) is None:
        return None
    shape = experiment.image_shape
    return step_flops(experiment, experiment.parameter_shapes(shape), (experiment.batch_size, *shape))


def draw_picture(experiment: Experiment, state: TrainState, mesh: Mesh, log: Log) -> None:
    """Sample with the averaged parameters, always from the same noise, and save the images as one picture."""
    log.doing("drawing samples")
    key = stream(jax.random.key(experiment.seed), "picture")
    x = draw_images(experiment, state.ema_params[0], experiment.image_shape, key, experiment.num_samples, mesh)
    log.images(int(state.step), to_pixels(x))
