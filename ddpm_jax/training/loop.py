"""The training loop: batches in, steps, metrics, checkpoints and pictures out; started again, it goes on.

A run is a folder:

    experiment.json      what is trained (and a copy of the experiment file, if it defines classes)
    checkpoints/STEP/    the state after STEP steps
    metrics.jsonl        one line every `log_every` steps
    tensorboard/         the same for TensorBoard
    samples/STEP.png     images drawn with the averaged parameters
"""

import sys
from collections import deque
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ddpm_jax import specs
from ddpm_jax.arrays import stream
from ddpm_jax.check import RunError
from ddpm_jax.data.images import to_pixels
from ddpm_jax.data.stream import batches
from ddpm_jax.experiment import Experiment, conflicts
from ddpm_jax.run import draw_images
from ddpm_jax.training.checkpoint import Checkpoints
from ddpm_jax.training.log import Log
from ddpm_jax.training.mesh import broadcast, check_divides, global_batch, make_mesh, replicated, with_sharding
from ddpm_jax.training.preemption import Notice, Preempted, pack, unpack
from ddpm_jax.training.state import TrainState, new_state
from ddpm_jax.training.step import Recipe, TrainStep, compile_step

# Steps that may be under way at once: enough to hide the host's work, few enough to stay in step.
STEPS_IN_FLIGHT = 2


def train(experiment: Experiment, workdir: Path, mesh: Mesh | None = None) -> Path:
    """Train in the folder `workdir`, from its newest checkpoint if there is one; returns the last picture's path.

    mesh: all devices of all processes unless given.

    Raises ValueError where the experiment does not fit together or the devices, RunError where the
    folder holds another experiment's run: then nothing on disk has changed.  Raises RunError also where the
    loss is lost, and Preempted where a SIGTERM ended it early: then all is saved, and calling it again goes on.
    """
    mesh = mesh or make_mesh()
    experiment.check()
    check_divides(mesh, experiment.batch_size)
    check_resumable(experiment, workdir)
    recipe = experiment.recipe()
    step = compile_step(recipe, mesh)
    check_step(experiment, recipe, step)
    workdir.mkdir(parents=True, exist_ok=True)
    is_first = jax.process_index() == 0
    if is_first:
        specs.save(experiment, workdir / "experiment.json")

    checkpoints = Checkpoints(workdir / "checkpoints", experiment.keep_last, experiment.keep_every)
    state = start_state(experiment, recipe, mesh, checkpoints)
    log = Log(workdir, int(state.step), experiment.num_steps, quiet=not is_first)
    notice = Notice()
    try:
        state = run_steps(experiment, step, mesh, state, checkpoints, log, notice)
        picture = log.picture_path(int(state.step))
        if not broadcast(picture.exists()):
            draw_picture(experiment, state, mesh, log)  # the run was killed between its last step and this
        checkpoints.wait()
    finally:
        notice.close()
        log.close()
        if jax.process_count() == 1 or isinstance(sys.exception(), Preempted | None):
            checkpoints.close()  # where one of many processes fails, this would wait for the others
    return picture


def check_resumable(experiment: Experiment, workdir: Path) -> None:
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
    differing = conflicts(specs.load(path), experiment)
    if differing:
        listed = "\n".join(f"  {line}" for line in differing)
        raise RunError(
            f"{workdir} holds a run of a different experiment:\n{listed}\n"
            "Choose another --workdir for a new run, or give the values from there to go on with the old one."
        )


def fresh_state(experiment: Experiment, recipe: Recipe) -> TrainState:
    """The state before the first step."""
    params = experiment.net.init(stream(jax.random.key(experiment.seed), "init"), experiment.image_shape)
    return new_state(params, recipe.update, recipe.timesteps.start(recipe.schedule.num_steps))


def check_step(experiment: Experiment, recipe: Recipe, step: TrainStep) -> None:
    """Trace a step, which compiles nothing: what does not fit is an error now."""
    state = jax.eval_shape(lambda: fresh_state(experiment, recipe))
    shape = (experiment.batch_size, *experiment.image_shape)
    batch = {"image": jax.ShapeDtypeStruct(shape, np.uint8)}
    if "label" in experiment.data[0]:
        batch["label"] = jax.ShapeDtypeStruct(shape[:1], np.int32)
    jax.eval_shape(step, state, batch, jax.random.key(0))


def start_state(experiment: Experiment, recipe: Recipe, mesh: Mesh, checkpoints: Checkpoints) -> TrainState:
    """The newest state on disk, or a new one, on every device."""
    shapes = with_sharding(jax.eval_shape(lambda: fresh_state(experiment, recipe)), replicated(mesh))
    report = print if jax.process_index() == 0 else lambda text: None
    found = checkpoints.restore_newest(lambda about: as_trees(shapes), report=report)
    if found is None:
        return jax.device_put(fresh_state(experiment, recipe), replicated(mesh))
    step, trees = found
    checkpoints.set_aside(after=step)
    return TrainState(ema_params=trees["ema"]["params"], **trees["training"])


def as_trees(state: Any) -> dict[str, Any]:
    """The state as a checkpoint holds it: what sampling needs by itself, and the rest."""
    rest = {name: getattr(state, name) for name in ("step", "params", "opt_state", "timesteps")}
    return {"ema": {"params": state.ema_params}, "training": rest}


def run_steps(
    experiment: Experiment,
    step_once: TrainStep,
    mesh: Mesh,
    state: TrainState,
    checkpoints: Checkpoints,
    log: Log,
    notice: Notice,
) -> TrainState:
    """Take the steps that are left, and write what is due after each; raises Preempted where they are cut short."""
    start, last = int(state.step), experiment.num_steps
    key = jax.random.key(experiment.seed)
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    stream_of_batches = batches(experiment.data, experiment.batch_size, experiment.seed, start_step=start, **processes)
    about = {"image_shape": list(experiment.image_shape)}
    pending: deque[Any] = deque()  # the metrics of the steps since the last record
    if start > 0:
        pending.extend(unpack(checkpoints.about(start).get("unrecorded", [])))
    for step in range(start + 1, last + 1):
        state, metrics = step_once(state, global_batch(mesh, checked(next(stream_of_batches), experiment)), key)
        pending.append(metrics)
        if step == start + 1:
            jax.block_until_ready(metrics)
            log.restart_clock(step)  # the first step was spent compiling
        if len(pending) > STEPS_IN_FLIGHT:
            jax.block_until_ready(pending[-1 - STEPS_IN_FLIGHT])
        log.advance(step)
        save, picture = (
            step % every == 0 or step == last for every in (experiment.checkpoint_every, experiment.sample_every)
        )
        if save or picture or step % experiment.log_every == 0:
            record(log, step, pending, experiment.batch_size, checkpoints)
        if save:
            log.flush()
            checkpoints.save(step, as_trees(state), about)
        if picture:
            draw_picture(experiment, state, mesh, log)
        if save or picture:
            log.restart_clock(step)
        if notice.stops_after(step) and step < last:
            if not save:
                unrecorded = fetch_metrics(step, pending, checkpoints)
                checkpoints.save(step, as_trees(state), {**about, "unrecorded": pack(unrecorded)})
            checkpoints.wait()
            raise Preempted(step)
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
    return {name: batch[name] for name in ("image", "label") if name in batch}


def record(log: Log, step: int, pending: deque[Any], batch_size: int, checkpoints: Checkpoints) -> None:
    """Log the means of the metrics of the steps before and at `step`, and empty the queue."""
    fetched = fetch_metrics(step, pending, checkpoints)
    pending.clear()
    means = {name: float(np.mean([metrics[name] for metrics in fetched])) for name in fetched[0]}
    log.metrics(step, means, batch_size)


def fetch_metrics(step: int, pending: deque[Any], checkpoints: Checkpoints) -> list[dict[str, np.ndarray]]:
    """The metrics of the steps before and at `step`.

    Raises RunError where the loss of one of them is not finite.
    """
    fetched = jax.device_get(list(pending))
    first = step - len(fetched) + 1
    for number, metrics in enumerate(fetched, first):
        if not all(np.isfinite(value) for value in metrics.values()):
            checkpoints.wait()
            good = next(iter(checkpoints.steps()), None)
            raise RunError(
                f"the loss is lost: at step {number} it is {metrics['loss']}, the gradient's norm "
                f"{metrics['gradient_norm']}. "
                + (f"The last good checkpoint is that of step {good}. " if good else "There is no checkpoint yet. ")
                + "Try a lower --optimizer.learning-rate, a longer --optimizer.warmup-steps or a smaller "
                "--optimizer.clip-norm in a new --workdir."
            )
    return fetched


def draw_picture(experiment: Experiment, state: TrainState, mesh: Mesh, log: Log) -> None:
    """Sample with the averaged parameters, always from the same noise, and save the images as one picture."""
    log.doing("drawing samples")
    key = stream(jax.random.key(experiment.seed), "picture")
    x = draw_images(experiment, state.ema_params, experiment.image_shape, key, experiment.num_samples, mesh)
    log.images(int(state.step), to_pixels(x))
