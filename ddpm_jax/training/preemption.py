"""Stopping when the machine is wanted back: SIGTERM ends a training after the step under way, which is saved.

One process has a signal handler of its own, there only while it trains.  Of many processes, one that is told is
enough: JAX's preemption service passes the notice on and names a step that none of them has reached yet, and
all stop after that one.

What was measured since the last line of metrics is saved with the state, so that the run that goes on writes the
same lines as one that was never stopped.
"""

import signal
import threading
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils


class Preempted(Exception):  # noqa: N818 (no error: what was asked for has been done)
    """Training was asked to stop and did; `step` is the last step taken, which is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped by SIGTERM after step {step}, which is saved; the same command goes on from there")
        self.step = step


class Notice:
    """Listens for SIGTERM from now until `close`, which puts back the handler that was there before.

    Outside the main thread, where Python allows no handlers, and where C code has one, nothing changes and
    nothing is heard.
    """

    def __init__(self) -> None:
        self._asked = self._installed = False
        # One of many processes (JAX's service took the signal when it joined), unless that service is off.
        self._shared = jax.distributed.is_initialized() and bool(jax.config.values["jax_enable_preemption_service"])
        self._previous = signal.getsignal(signal.SIGTERM)
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and not jax.distributed.is_initialized() and self._previous is not None:
            signal.signal(signal.SIGTERM, self._note)
            self._installed = True

    def _note(self, *_: Any) -> None:
        self._asked = True

    def stops_after(self, step: int) -> bool:
        """Whether training shall stop after `step`: the same answer on every process; to be asked after each step."""
        return multihost_utils.reached_preemption_sync_point(step) if self._shared else self._asked

    def close(self) -> None:
        """Listen no more."""
        if self._installed:
            signal.signal(signal.SIGTERM, self._previous)
            self._installed = False


def pack(metrics: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The metrics of some steps as JSON values, exactly."""
    return [{name: [str(value.dtype), value.tolist()] for name, value in step.items()} for step in metrics]


def unpack(packed: list[dict[str, Any]]) -> list[dict[str, np.ndarray]]:
    """What `pack` was given."""
    return [{name: np.asarray(value, jnp.dtype(kind)) for name, (kind, value) in step.items()} for step in packed]
