"""Stopping when the machine is wanted back: SIGTERM ends a training after the step under way, which is saved.

One process has a signal handler of its own, there only while it trains.  Of many processes, one that is told is
enough: JAX's preemption service passes the notice on and names a step that none of them has reached yet, and
all stop after that one.  The service starts with the training too: a SIGTERM before that, while the processes join
or read a checkpoint, ends a process at once, with nothing lost.

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
from jax._src.distributed import global_state  # JAX's own name for what Orbax and others use too


class Preempted(Exception):  # noqa: N818 (no error: what was asked for has been done)
    """Training was asked to stop and did; `step` is the last step taken, which is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped by SIGTERM after step {step}, which is saved; the same command goes on from there")
        self.step = step


class PreemptionListener:
    """Listens for SIGTERM from now until `close`, which puts back the handler that was there before.

    A process that is alone hears nothing, and changes nothing, outside the main thread, where Python allows no
    handlers, and where C code has one.  Many processes hear nothing where jax_enable_preemption_service is off; their
    handler is JAX's, which stays.
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
        """Whether training shall stop after `step`: the same answer on every process; to be asked after each step.

        Many processes compare how often each has asked, not their steps: the service counts from 0, and would name
        step 1 to a run that goes on from step 500 and is told to stop before its first.
        """
        if self._service is None:
            return self._asked
        self._count += 1
        return self._service.reached_sync_point(self._count)

    def close(self) -> None:
        """Listen no more."""
        if self._installed:
            signal.signal(signal.SIGTERM, self._previous)
            self._installed = False
        if self._service is not None:  # JAX ends it, and knows when
            global_state.preemption_sync_manager, self._service = self._service, None


def _take_service() -> Any:
    """JAX's preemption service, for this training alone.

    Orbax asks JAX's too, about its own steps and from other threads, which sets the count of this process back or
    forth: all may then wait for a step that some have passed.  It does without where JAX has none.
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
    """What `pack` was given."""
    return [{name: np.asarray(value, jnp.dtype(kind)) for name, (kind, value) in step.items()} for step in packed]
