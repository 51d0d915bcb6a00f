"""A run learns from the data that it began with: RUN/data.json keeps what they held.

Batch n is a function of (seed, n) only while the data stay the same, so a run whose data have changed is not resumed.
"""

import dataclasses
from collections.abc import Callable

from ddpm_jax.data.examine import as_message, quick_problems
from ddpm_jax.data.fingerprint import Fingerprint, changes, fingerprint
from ddpm_jax.devices.mesh import on_first_process
from ddpm_jax.errors import RunError
from ddpm_jax.storage.checkpoint import steps_in
from ddpm_jax.storage.paths import RunPath, io_errors, write_bytes
from ddpm_jax.training.experiment import Experiment

NAME = "data.json"


def check_data(experiment: Experiment, workdir: RunPath, report: Callable[[str], None]) -> Fingerprint | None:
    """What the data hold now, to be written into a run's folder; None on all processes but the first.

    Also None if the run has reached its last step, as it reads no more data.

    Args:
        experiment: the experiment whose data are looked at.
        workdir: the folder of the run, which may not exist yet.
        report: takes lines for the person who waits.

    Raises ValueError if the data have faults that are found quickly, and RunError if they differ from the data that the
    run in `workdir` was trained on.
    """
    return on_first_process(lambda: _looked_at(experiment, workdir, report), "accept the data")


def _looked_at(experiment: Experiment, workdir: RunPath, report: Callable[[str], None]) -> Fingerprint | None:
    """`check_data` on the first process."""
    reached = max(steps_in(workdir / "checkpoints"), default=0)
    if reached == experiment.num_steps:
        return None
    there = _read(workdir) if reached > 0 else None
    here = fingerprint(experiment.data, report=report)
    if there is None:
        problems = quick_problems(experiment.data, experiment.net.num_classes)
        if problems:
            raise ValueError(as_message(problems))
        if reached > 0:
            report(
                f"{workdir} does not say what its data held at step {reached}; {NAME} keeps what they hold now, so "
                "that changes from here on will be noticed"
            )
        return here
    differing = changes(there, here)
    listed = "\n".join(f"  {line}" for line in differing)
    if differing and there.may_change:
        report(f"the data have been repaired since step {reached}:\n{listed}")
    elif differing:
        raise RunError(
            f"{workdir} holds a run that has learned from other data than these until step {reached}:\n{listed}\n"
            "Restore the data, or choose another --workdir for a new run. To continue with the data as they are now, "
            f"delete {workdir / NAME}; the run can then not be reproduced."
        )
    return here


def _read(workdir: RunPath) -> Fingerprint | None:
    """What the data of the run held; None for a run that does not say."""
    path = workdir / NAME
    if not path.exists():
        return None
    try:
        return Fingerprint.from_json(path.read_text())
    except (ValueError, io_errors(path)) as error:
        raise RunError(
            f"{path} cannot be read ({error}), so it is not known whether the data are those that the run has learned "
            "from. Restore it from a copy, or delete it to continue with the data as they are now."
        ) from None


def write_fingerprint(workdir: RunPath, found: Fingerprint) -> None:
    """Keep what the data hold in a run's folder."""
    path, text = workdir / NAME, found.as_json()
    if not path.exists() or path.read_text() != text:
        write_bytes(path, text.encode())


def expect_mending(workdir: RunPath) -> None:
    """Let the next start of a run take changed data: those that it has cannot be read."""
    found = _read(workdir)
    if found is not None:
        write_fingerprint(workdir, dataclasses.replace(found, may_change=True))
