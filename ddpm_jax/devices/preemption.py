"""Preemption: SIGTERM ends a training after the step under way, and the state is saved.

A single process has its own signal handler while it trains.  If one of several processes receives SIGTERM, JAX's
preemption service chooses a step that no process has reached, and all stop after it.  The service starts with the
training: an earlier SIGTERM, while the processes join or read a checkpoint, ends a process at once and loses nothing.

The metrics since the last logged line are saved with the state, so a resumed run writes the same lines as one that was
never stopped.
"""

import signal
import threading
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.distributed import global_state  # private, but Orbax and others use it too


class Preempted(Exception):  # noqa: N818 (not an error)
    """SIGTERM ended the training; `step` is the last step, whose state is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped by SIGTERM after step {step}, which is saved; the same command resumes the run")
        self.step = step


class PreemptionListener:
    """Listens for SIGTERM from now until `close`, which restores the previous handler.

    A single process does nothing outside the main thread, since Python allows no handlers there, or if C code has
    installed a handler.  Several processes do nothing if jax_enable_preemption_service is off; their handler is JAX's,
    which stays.
    """

    def __init__(self) -> None:
        self._asked = self._installed = False
        self._count, self._service = 0, None
        self._previous = signal.getsignal(signal.SIGTERM)
        if jax.distributed.is_initialized():
            self._service = _take_service() if jax.config.values["jax_enable_preemption_service"] else None
        elif threading.current_thread() is threading.main_thread() and self._previous is not None:
            signal.signal(signal.SIGTERM, self._note)
            self._installed = True

    def _note(self, *_: Any) -> None:
        self._asked = True

    def stops_after(self, step: int) -> bool:
        """Whether training stops after `step`, the same on every process; must be called after each step.

        Several processes compare their numbers of calls, not their steps: the service counts from 0, and would choose
        step 1 for a run that resumes at step 500 and is stopped before its first step.
        """
        if self._service is None:
            return self._asked
        self._count += 1
        return self._service.reached_sync_point(self._count)

    def close(self) -> None:
        """Stop listening."""
        if self._installed:
            signal.signal(signal.SIGTERM, self._previous)
            self._installed = False
        if self._service is not None:  # JAX shuts it down
            global_state.preemption_sync_manager, self._service = self._service, None


def _take_service() -> Any:
    """JAX's preemption service, removed from JAX, so that only this training uses it.

    Orbax would use it too, with its own steps and from other threads, and change the count of this process: all
    processes might then wait for a step that some have passed.  Without the service Orbax works as well.
    """
    if global_state.preemption_sync_manager is None:
        global_state.initialize_preemption_sync_manager()
    service, global_state.preemption_sync_manager = global_state.preemption_sync_manager, None
    assert service is not None
    service.reached_sync_point(0)
    return service


def pack(metrics: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The metrics of some steps as JSON values, exactly."""
    return [{name: [str(value.dtype), value.tolist()] for name, value in step.items()} for step in metrics]


def unpack(packed: list[dict[str, Any]]) -> list[dict[str, np.ndarray]]:
    """The metrics that `pack` received."""
    return [{name: np.asarray(value, jnp.dtype(kind)) for name, (kind, value) in step.items()} for step in packed]
