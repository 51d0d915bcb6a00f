"""The messages that training prints."""

from typing import Any

from ddpm_jax.data.accept import described_images
from ddpm_jax.storage.paths import RunPath
from ddpm_jax.training.cost import count_parameters
from ddpm_jax.training.plan import Plan


def opening(plan: Plan, workdir: RunPath, start: int) -> str:
    """Two lines: what is trained, on which devices and data, and from which step; one line for a finished run."""
    of, mesh, data = plan.experiment, plan.mesh, plan.experiment.data
    if start == of.num_steps:
        longer = f"train longer with --num-steps {2 * of.num_steps}"
        if of.optimizer.depends_on_length:
            longer = "its learning rate ends at that step, so train longer in a new --workdir"
        return f"{workdir} is at step {start} of {of.num_steps} already: nothing is left to train; {longer}"
    begins = f"resuming at step {start}" if start else "starting at step 0"
    images = f"{type(data).__name__}, {described_images(len(data), plan.image_shape)}"
    return (
        f"{of.name}: {count_parameters(plan.state.params):,} parameters on {mesh.size} x "
        f"{mesh.devices.flat[0].device_kind}, {begins} of {of.num_steps}, in {workdir}\n"
        f"data: {images}, {of.batch_size} in a step, {plan.epochs:,.1f} epochs"
    )


def diverged(step: int, metrics: dict[str, Any], good: int | None) -> str:
    """That the loss or the gradient is not finite, and what to try.

    Args:
        step: the first such step.
        metrics: the metrics of that step.
        good: the step of the last good checkpoint; None if there is none.
    """
    newest = f"The last good checkpoint is that of step {good}. " if good else "There is no checkpoint yet. "
    return (
        f"training diverged: at step {step} the loss is {metrics['loss']} and the gradient's norm "
        f"{metrics['gradient_norm']}. {newest}Try a lower --optimizer.learning-rate, a longer --optimizer.warmup-steps "
        "or a smaller --optimizer.clip-norm in a new --workdir."
    )
