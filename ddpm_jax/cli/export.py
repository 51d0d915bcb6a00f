"""`ddpm-jax export RUN PATH`: write the network of a run for diffusers, with a model card."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from ddpm_jax.cli.options import Average, RunFolder, by_default, parse
from ddpm_jax.devices.setup import set_up_jax
from ddpm_jax.interop import folder, runs
from ddpm_jax.storage.paths import run_path

__all__ = ["ExportOptions", "main"]


@dataclass(frozen=True)
class ExportOptions:
    """Write the network and the schedule of a run as a folder that diffusers' DDPMPipeline reads, with a model card."""

    run: RunFolder
    path: Annotated[str, tyro.conf.arg(metavar="PATH"), tyro.conf.Positional]
    """The folder to write; it must not exist yet, or be empty."""
    ema: Average = None
    license: Annotated[str | None, by_default("unknown", "ID")] = None
    """The licence of the model for its card, such as apache-2.0 or cc-by-4.0."""


def main(arguments: list[str]) -> None:
    """`ddpm-jax export`."""
    options = parse(ExportOptions, arguments, "export")
    folder.require_new(run_path(options.path), "give another PATH")  # before the weights are read
    set_up_jax()
    path = runs.export_run(options.run, options.path, ema=options.ema, license=options.license, report=print)
    print(f'{path}: for diffusers.DDPMPipeline.from_pretrained("{path}"), or ddpm-jax import {path}')
