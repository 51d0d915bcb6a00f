"""Work that one of several processes does while the others wait."""

from collections.abc import Callable
from typing import TypeVar

import jax

from ddpm_jax.devices.mesh import broadcast
from ddpm_jax.errors import RunError

__all__ = ["on_first_process"]

Result = TypeVar("Result")


def on_first_process(work: Callable[[], Result], failure: str) -> Result | None:
    """The result of some work of the first process.

    The others wait until the work is done, as a process that leaves early counts as dead.

    Args:
        work: the work, a function of no arguments.
        failure: what the first process could not do, for the message of the others.

    Returns:
        The result on the first process, None on the others.

    Raises:
        RunError: on the other processes, if the work failed; the first process raises the error of the work.
    """
    found, done = None, False
    try:
        if jax.process_index() == 0:
            found, done = work(), True
    finally:
        done = broadcast(done)
    if not done:
        raise RunError(f"the first process could not {failure}; its own message says why")
    return found
