"""The choice of a sampler and of a clipping on the command line, for every command that draws images."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Annotated, Any

from ddpm_jax import sampling
from ddpm_jax.cli.options import by_default, one_of
from ddpm_jax.diffusion.clipping import Clip, DynamicThreshold, NoClipping
from ddpm_jax.errors import require
from ddpm_jax.run import Run

__all__ = ["SamplerOptions"]


def _by_name(*classes: Any) -> dict[str, Any]:
    """Classes by their names on the command line: dpm-solver for DpmSolver."""
    return {re.sub(r"(?<!^)([A-Z])", r"-\1", cls.__name__).lower(): cls for cls in classes}


SAMPLERS = _by_name(
    *(sampling.Ancestral, sampling.Ddim, sampling.DpmSolver, sampling.ExponentialHeun, sampling.Heun, sampling.UniPc)
)
GRIDS = _by_name(sampling.Uniform, sampling.Quadratic, sampling.LogSnr, sampling.Karras)
CLIPPINGS = {"static": Clip, "dynamic": DynamicThreshold, "off": NoClipping}


@dataclass(frozen=True)
class SamplerOptions:
    """The sampler and its settings."""

    sampler: Annotated[str | None, one_of(*SAMPLERS), by_default("that of the experiment")] = None
    """The sampler."""
    steps: Annotated[int | None, by_default("as many as the sampler has")] = None
    """The number of sampling steps."""
    grid: Annotated[str | None, one_of(*GRIDS), by_default("that of the sampler")] = None
    """The rule that chooses the timesteps of the steps."""
    eta: Annotated[float | None, by_default("that of the sampler")] = None
    """The noise of the ddim sampler, from 0 (deterministic) to 1 (ancestral)."""
    sde: bool = False
    """Solve the stochastic equation, with noise at each step (dpm-solver only)."""
    clip: Annotated[str | None, one_of(*CLIPPINGS), by_default("that of the experiment")] = None
    """The clipping of a predicted x to [-1, 1]: static, dynamic (thresholding by a quantile) or off."""

    def applied(self, run: Run) -> Run:
        """The run with the sampler, settings and clipping of these options.

        Raises ValueError if the sampler has no such setting.
        """
        sampler = SAMPLERS[self.sampler]() if self.sampler else run.experiment.sampler
        grid = GRIDS[self.grid]() if self.grid else None
        settings = {"num_steps": self.steps, "grid": grid, "eta": self.eta, "sde": self.sde or None}
        changes = {name: value for name, value in settings.items() if value is not None}
        fields = {field.name for field in dataclasses.fields(sampler)}
        for name, value in changes.items():
            flag = "--steps" if name == "num_steps" else f"--{name}"
            require(flag, value, name in fields, f"none, as the sampler {type(sampler).__name__} has no {name}")
        clip = CLIPPINGS[self.clip]() if self.clip else run.experiment.clip
        experiment = dataclasses.replace(run.experiment, sampler=dataclasses.replace(sampler, **changes), clip=clip)
        return dataclasses.replace(run, experiment=experiment)
