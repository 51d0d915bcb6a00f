"""The forward process, as every formula sees it: tables over t = 0..T, index 0 clean.

    z_t = signal_t x + noise_t eps,   eps ~ N(0, I)

`schedule` builds the one kind of process that there is, a chain of T steps with signal^2 + noise^2 = 1.
"""

from typing import Any, Protocol, runtime_checkable

import jax

from ddpm_jax.diffusion.arrays import Table
from ddpm_jax.errors import short_repr

__all__ = ["Process", "check_process"]


@runtime_checkable
class Process(Protocol):
    """The tables of a forward process, each float32 [T+1]; a pytree, so that jitted functions take it as an
    argument."""

    @property
    def num_steps(self) -> int:
        """T, the number of steps."""
        ...

    @property
    def beta(self) -> Table:
        """The variance of one step, q(z_t | z_{t-1}); 0 at t = 0."""
        ...

    @property
    def alpha_bar(self) -> Table:
        """signal^2: the share of the data's variance left after t steps."""
        ...

    @property
    def noise_var(self) -> Table:
        """1 - alpha_bar, computed without cancellation."""
        ...

    @property
    def signal(self) -> Table:
        """The factor on x."""
        ...

    @property
    def noise(self) -> Table:
        """The factor on eps."""
        ...

    @property
    def snr(self) -> Table:
        """The signal-to-noise ratio, alpha_bar / (1 - alpha_bar); infinite at t = 0."""
        ...


EXPECTED_PROCESS = "expected a process, such as Linear(num_steps=1000).build()"


def check_process(process: Any) -> None:
    """Raise ValueError unless `process` has the tables of a process."""
    if not isinstance(process, Process):
        advice = " (call its build())" if hasattr(process, "build") else ""
        raise ValueError(f"process is {short_repr(process)}; {EXPECTED_PROCESS}{advice}")
    if jax.tree_util.all_leaves([process]):
        name = type(process).__name__
        raise ValueError(f"process is a {name}, which is no pytree; expected one, such as a flax.struct.dataclass")
