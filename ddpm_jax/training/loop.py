"""The training loop: batches in; steps, metrics, checkpoints and pictures out.  Started again, it resumes.

A run is a folder:

    experiment.json      what is trained (and a copy of the experiment file, if it defines classes)
    data.json            what the data hold: digests
    checkpoints/STEP/    the state after STEP steps
    snapshots/STEP/      averages that are kept for good, if the experiment asks for them
    metrics.jsonl        one line every `log_every` steps
    tensorboard/         the same for TensorBoard
    samples/STEP.png     images drawn with the averaged parameters
    lock                 held while a job trains in it
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.data.accept import check_labels
from ddpm_jax.data.examine import reason_of
from ddpm_jax.data.images import to_pixels
from ddpm_jax.data.map_examples import numbers
from ddpm_jax.data.stream import batches
from ddpm_jax.devices.axes import entered
from ddpm_jax.devices.mesh import broadcast, global_batch, local_rows, on_first_process
from ddpm_jax.devices.preemption import Preempted, PreemptionListener, pack, unpack
from ddpm_jax.diffusion.arrays import stream
from ddpm_jax.errors import RunError, require
from ddpm_jax.storage import specs
from ddpm_jax.storage.checkpoint import Checkpoints
from ddpm_jax.storage.lock import locked
from ddpm_jax.storage.log import Log
from ddpm_jax.storage.paths import RunPath, require_folder, run_path
from ddpm_jax.training import advice
from ddpm_jax.training.cost import step_flops
from ddpm_jax.training.experiment import Experiment
from ddpm_jax.training.generate import draw_images
from ddpm_jax.training.messages import diverged, opening
from ddpm_jax.training.metering import Meter, Profile, peak_flops, summary
from ddpm_jax.training.nans import explain
from ddpm_jax.training.plan import Plan
from ddpm_jax.training.resume import as_trees, check_resumable, set_aside_lost, start_state
from ddpm_jax.training.same_data import check_data, expect_mending, write_fingerprint
from ddpm_jax.training.snapshots import Snapshots
from ddpm_jax.training.step import TrainStep

# Steps that may be under way at once: enough to hide the host's work, few enough to stay in step.
STEPS_IN_FLIGHT = 2


def train(
    experiment: Experiment,
    workdir: str | os.PathLike[str],
    mesh: Mesh | None = None,
    *,
    profile: tuple[int, int] | None = None,
    debug_nans: bool = False,
) -> RunPath:
    """Train in a folder, from its newest valid checkpoint if there is one.

    Args:
        experiment: what is trained.
        workdir: a local folder, or one of an object store, gs://bucket/run.
        mesh: the devices; None for those of the experiment, all devices of all processes.
        profile: the first and the last step of a profiler's trace, written to `workdir`/profile; None for none.
        debug_nans: whether to check the numbers after each step, and to name the line of code that made the first
            number that is not finite; takes the memory of the state twice.

    Returns:
        The path of the last picture.

    Raises:
        ValueError: the experiment does not fit together, or does not fit the data or the devices: nothing on disk has
            changed.  Also if an example cannot be read or has a wrong label: then the state before it has been saved,
            unless there are several processes.
        RunError: the folder holds a run of another experiment or of other data, or another job trains in it: nothing on
            disk has changed.  Also if training diverged, or the last checkpoint cannot be written.
        Preempted: a SIGTERM ended it early.  Everything is saved; the same call resumes it.
    """
    is_one = isinstance(experiment, Experiment)
    require("experiment", experiment, is_one, "an Experiment, such as Experiment(name, data, net)")
    workdir, plan = run_path(workdir), experiment.plan(mesh)
    check_resumable(experiment, workdir)
    require_folder(workdir, "choose another --workdir")
    data = check_data(experiment, workdir, print)
    trace = Profile(workdir / "profile", profile)
    with entered(plan.mesh):
        step = plan.step(donate=not debug_nans)
        workdir.mkdir(parents=True, exist_ok=True)
        with locked(workdir, report=print) as check_lock, ExitStack() as stack:
            check_resumable(experiment, workdir)  # again: the process that held the lock may have written
            broadcast(0)  # every process has read the folder before the first one changes it
            on_first_process(lambda: set_aside_lost(workdir, report=print), "set aside a lost run")
            training = Training(plan, step, workdir, trace, debug_nans, check_lock, stack)
            if data is not None:
                write_fingerprint(workdir, data)
            return training.run()


class Training:
    """A training under way: its state, and all that it is written to."""

    def __init__(
        self,
        plan: Plan,
        step: TrainStep,
        workdir: RunPath,
        profile: Profile,
        debug_nans: bool,
        check_lock: Callable[[], None],
        stack: ExitStack,
    ) -> None:
        experiment: Experiment = plan.experiment
        self.plan, self.experiment, self.step_once, self.profile = plan, experiment, step, profile
        self.check_lock, self.workdir, self.debug_nans = check_lock, workdir, debug_nans
        is_first = jax.process_index() == 0
        self.checkpoints = Checkpoints(workdir / "checkpoints", experiment.keep_last, experiment.keep_every)
        self.snapshots = Snapshots(workdir, experiment.ema, experiment.num_steps)
        stack.push(self._let_go)
        self.checkpoints.remove_leftovers()
        report = print if is_first else lambda text: None
        self.state, about = start_state(plan, self.checkpoints, report)
        self.start = int(self.state.step)
        if is_first:
            specs.save(experiment, workdir / "experiment.json")
        # The metrics of the steps since the last line of them.
        self.pending: deque[Any] = deque(unpack(about.get("unrecorded", [])))
        self.snapshots.resume(self.start, self.state.ema_params)
        self.log = Log(workdir, self.start, experiment.num_steps, quiet=not is_first)
        stack.callback(self.log.close)
        stack.callback(profile.close, self.log.say)
        self.checkpoints.report = self.snapshots.report = self.log.say
        self.log.say(opening(plan, workdir, self.start))
        self.checkpoints.check_space(self.state)
        self.meter = Meter(self.start, experiment.batch_size, plan.mesh.size, _flops(plan))
        self.notice = PreemptionListener()
        stack.callback(self.notice.close)

    def run(self) -> RunPath:
        """Take the remaining steps; raises Preempted if they are cut short."""
        last = self.experiment.num_steps
        for step, batch in zip(range(self.start + 1, last + 1), self.batches(), strict=False):
            self.take(step, batch)
            self.write_what_is_due(step)
            if self.notice.stops_after(step) and step < last:
                self.stop_early(step)
        picture = self.log.picture_path(int(self.state.step))
        if not broadcast(picture.exists()):
            self.draw_picture()  # the run was killed between its last step and this
        self.checkpoints.finish(int(self.state.step), as_trees(self.state), self.about())
        self.snapshots.finish(int(self.state.step), self.state.ema_params)
        return picture

    def batches(self) -> Iterator[dict[str, np.ndarray]]:
        """This process's part of the batches that are left."""
        of = self.experiment
        rows = local_rows(self.plan.mesh, of.batch_size)
        found = batches(of.data, of.batch_size, of.seed, start_step=self.start, rows=rows)
        for step in range(self.start + 1, of.num_steps + 1):
            try:
                with self.meter.waiting():
                    batch = next(found)
                batch = numbers(batch)
                check_labels(batch, of.net.num_classes)
            except Exception as error:  # whatever the code of a source raises
                self.stop_for_data(step - 1, error)
            yield batch

    def take(self, step: int, batch: dict[str, np.ndarray]) -> None:
        """Begin one step; a few may be under way."""
        of = self.experiment
        arguments = self.state, global_batch(self.plan.mesh, batch, of.batch_size), jax.random.key(of.seed)
        with self.profile.step(step):
            self.state, metrics = self.step_once(*arguments)
        if self.debug_nans:
            explain(step, self.step_once.__wrapped__, arguments, metrics)
        self.pending.append(metrics)
        self.profile.stop(step, metrics, self.log.say)
        if step == self.start + 1:
            jax.block_until_ready(metrics)
            self.meter.restart(step)  # the first step was spent compiling
        if len(self.pending) > STEPS_IN_FLIGHT:
            jax.block_until_ready(self.pending[-1 - STEPS_IN_FLIGHT])
        self.log.advance(step)

    def write_what_is_due(self, step: int) -> None:
        """Metrics, a checkpoint, a snapshot, a picture."""
        of = self.experiment
        save, picture = (step % every == 0 or step == of.num_steps for every in (of.checkpoint_every, of.sample_every))
        snapshot = self.snapshots.due(step)
        if not (save or picture or snapshot or step % of.log_every == 0):
            return
        self.check_lock()
        self.record(step)
        if save:
            self.log.flush()
            self.snapshots.wait()
            after = min(step + of.checkpoint_every, of.num_steps) if step < of.num_steps else None
            self.checkpoints.save(step, as_trees(self.state), self.about(), next_step=after)
        if snapshot:
            self.snapshots.save(step, self.state.ema_params)
        if picture:
            self.draw_picture()
        if save or picture or snapshot:
            self.meter.restart(step)

    def stop_early(self, step: int) -> None:
        """Save the state after `step`, and what was measured since the last line of metrics; raises Preempted."""
        self.save_early(step)
        raise Preempted(step)

    def save_early(self, step: int) -> None:
        """Save the state after `step`, and what was measured since the last line of metrics."""
        self.check_lock()
        self.log.flush()
        self.snapshots.wait()
        about = {**self.about(), "unrecorded": pack(self.fetch_metrics(step))}
        self.checkpoints.finish(step, as_trees(self.state), about)

    def stop_for_data(self, step: int, error: Exception) -> NoReturn:
        """Save the state after `step`, whose next batch cannot be read, and raise ValueError that says why.

        One of many processes cannot save by itself: its message names the newest checkpoint.
        """
        if jax.process_count() == 1 and step > self.start:
            self.save_early(step)
        expect_mending(self.workdir)
        newest = next(iter(self.checkpoints.steps()), None)
        kept = "No step was taken yet" if newest is None else f"The state after step {newest} is saved"
        raise ValueError(
            f"{reason_of(error, f'the batch of step {step + 1}')}. {kept}; once the data are repaired, the same "
            f"command resumes from there. `ddpm-jax check` lists all examples that are wrong"
        ) from error

    def record(self, step: int) -> None:
        """Log the metrics of the steps since the last line, and forget them."""
        metrics = self.fetch_metrics(step)
        self.pending.clear()
        self.log.metrics(step, summary(metrics) | self.meter.read(step))
        self.checkpoints.poll()

    def fetch_metrics(self, step: int) -> list[dict[str, np.ndarray]]:
        """The metrics of the steps since the last line, up to `step`.

        Raises RunError if the loss of one of them is not finite.
        """
        fetched = jax.device_get(list(self.pending))
        for number, metrics in enumerate(fetched, step - len(fetched) + 1):
            if not (np.isfinite(metrics["loss"]) and np.isfinite(metrics["gradient_norm"])):
                self.checkpoints.wait()
                good = next(iter(self.checkpoints.steps()), None)
                raise RunError(diverged(number, metrics, good))
        return fetched

    def about(self) -> dict[str, Any]:
        """What a checkpoint says of itself: what is needed to read it."""
        return {"image_shape": list(self.plan.image_shape)}

    def draw_picture(self) -> None:
        """Sample with the averaged parameters, always from the same noise, and save the images as one picture."""
        count = self.experiment.num_samples
        self.log.doing(f"drawing {count} sample{'s' if count > 1 else ''}")
        of, key = self.experiment, stream(jax.random.key(self.experiment.seed), "picture")
        x = draw_images(of, self.state.ema_params[0], self.plan.image_shape, key, of.num_samples, self.plan.mesh)
        step = int(self.state.step)
        self.log.images(step, to_pixels(x), advice.of_average(of.ema, step, of.ema.profiles[0]))

    def _let_go(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Close what saves, at the end; where one of many processes fails, that would wait for the others."""
        if jax.process_count() == 1 or kind is None or issubclass(kind, Preempted):
            self.snapshots.close()
            self.checkpoints.close()


def _flops(plan: Plan) -> int | None:
    """Floating-point operations of a step, on devices whose peak is known; counting takes a second or two."""
    return None if peak_flops(jax.devices()[0]) is None else step_flops(plan)
