"""How images are drawn, as options that several commands have."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from ddpm_jax.diffusion.clipping import Clip, Clipping, DynamicThreshold, NoClipping
from ddpm_jax.errors import require
from ddpm_jax.sampling import (
    Ancestral,
    Ddim,
    DpmSolver,
    ExponentialHeun,
    Heun,
    Karras,
    LogSnr,
    Quadratic,
    Sampler,
    Uniform,
)

SAMPLERS = {
    "ancestral": Ancestral,
    "ddim": Ddim,
    "dpm-solver": DpmSolver,
    "exponential-heun": ExponentialHeun,
    "heun": Heun,
}
GRIDS = {"uniform": Uniform, "quadratic": Quadratic, "log-snr": LogSnr, "karras": Karras}
CLIPPINGS = {"static": Clip, "dynamic": DynamicThreshold, "off": NoClipping}


def one_of(*choices: str | int) -> PrimitiveConstructorSpec[Any]:
    """An option that takes one of these values; None, its default, is not among those of the command line.

    tyro lists the values of `Literal[...] | None` in an order of its own, with None.
    """
    values = {str(choice): choice for choice in choices}
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{{','.join(values)}}}",
        instance_from_str=lambda arguments: values[arguments[0]],
        is_instance=lambda value: value is None or value in choices,
        str_from_instance=lambda value: [str(value)],
        choices=tuple(values),
    )


@dataclass(frozen=True)
class SamplerOptions:
    """The sampler and its settings."""

    sampler: Annotated[str | None, one_of(*SAMPLERS)] = None
    """The sampler; the experiment's unless given."""
    steps: int | None = None
    """Steps of the sampler; its own number unless given."""
    grid: Annotated[str | None, one_of(*GRIDS)] = None
    """Which timesteps the steps visit; the sampler's own rule unless given."""
    eta: float | None = None
    """Noise of the ddim sampler, from 0 (deterministic) to 1 (ancestral)."""
    sde: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """The dpm-solver adds noise: its form for the stochastic equation."""
    clip: Annotated[str | None, one_of(*CLIPPINGS)] = None
    """What becomes of a predicted x beyond [-1, 1]; the experiment's choice unless given."""


def choose_sampler(default: Sampler, options: SamplerOptions) -> Sampler:
    """The run's sampler, or the one asked for, with the settings asked for."""
    sampler = SAMPLERS[options.sampler]() if options.sampler else default
    grid = GRIDS[options.grid]() if options.grid else None
    asked = {"num_steps": options.steps, "grid": grid, "eta": options.eta, "sde": options.sde or None}
    changes = {name: value for name, value in asked.items() if value is not None}
    fields = {field.name for field in dataclasses.fields(sampler)}
    flags = {"num_steps": "--steps", "grid": "--grid", "eta": "--eta", "sde": "--sde"}
    for name, value in changes.items():
        require(flags[name], value, name in fields, f"none, as the sampler {type(sampler).__name__} has no {name}")
    return dataclasses.replace(sampler, **changes)


def choose_clipping(options: SamplerOptions) -> Clipping | None:
    """The clipping asked for; None for the experiment's own."""
    return CLIPPINGS[options.clip]() if options.clip else None
