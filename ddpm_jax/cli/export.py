"""`ddpm-jax export RUN PATH`: write a run's network for diffusers, with a model card."""

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class ExportOptions:
    """Write a run's network, schedule and model card as a folder that diffusers' DDPMPipeline reads."""

    run: Annotated[str, tyro.conf.arg(metavar="RUN"), tyro.conf.Positional]
    """The folder of the run."""
    path: Annotated[str, tyro.conf.arg(metavar="PATH"), tyro.conf.Positional]
    """The folder to write, which must be new."""
    ema: float | None = None
    """Which average of the parameters: a decay or width that the run kept, the first of them unless given; of a
    run with PowerEma any width, made from its snapshots."""
    license: Annotated[str | None, tyro.conf.arg(metavar="ID")] = None
    """The licence of the model, such as apache-2.0 or cc-by-4.0; the card says that none was given unless it is."""


def main(arguments: list[str]) -> None:
    """`ddpm-jax export`."""
    options = tyro.cli(ExportOptions, args=arguments, prog="ddpm-jax export", config=(tyro.conf.DisallowNone,))

    from ddpm_jax.devices.setup import set_up_jax
    from ddpm_jax.interop.folder import require_new
    from ddpm_jax.interop.runs import export_run
    from ddpm_jax.storage.paths import run_path

    require_new(run_path(options.path), "give another PATH")  # before the weights are read
    set_up_jax()
    path = export_run(options.run, options.path, ema=options.ema, license=options.license, report=print)
    print(f'{path}: for diffusers.DDPMPipeline.from_pretrained("{path}"), or ddpm-jax import {path}')
