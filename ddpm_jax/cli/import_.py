"""`ddpm-jax import PATH`: make a run from a network that diffusers wrote."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from ddpm_jax.cli.options import by_default, parse
from ddpm_jax.devices.setup import set_up_jax
from ddpm_jax.errors import require
from ddpm_jax.interop.runs import import_run
from ddpm_jax.storage.paths import local_path, require_folder, run_path

__all__ = ["ImportOptions", "main"]


@dataclass(frozen=True)
class ImportOptions:
    """Make a run from a diffusers folder: a pipeline, or a UNet2DModel alone, with weights in safetensors.

    The run can be sampled from, evaluated, and trained further."""

    path: Annotated[str, tyro.conf.arg(metavar="PATH"), tyro.conf.Positional]
    """The folder that diffusers wrote."""
    output: Annotated[str | None, by_default("runs/ and the last part of PATH", "RUN")] = None
    """The folder of the run; it must not exist yet, or be empty."""
    size: Annotated[tuple[int, ...], by_default("those of the config", "HEIGHT [WIDTH]")] = ()
    """The height and width of the images; one number for square images."""
    variant: Annotated[str | None, by_default("the files without a variant in their name")] = None
    """The variant of the weights: fp16 for diffusion_pytorch_model.fp16.safetensors."""
    label_dropout: float = 0.0
    """The share of labels that are dropped in further training, if the last class of the network stands for no class.
    0 if all classes are classes."""
    data: Annotated[str | None, by_default("none; training takes --data.path", "FILE.npz|FOLDER")] = None
    """The images for further training."""


def main(arguments: list[str]) -> None:
    """`ddpm-jax import`."""
    options = parse(ImportOptions, arguments, "import")
    holds = len(options.size) <= 2 and min(options.size, default=1) >= 1
    require("--size", options.size, holds, "one or two whole numbers, at least 1")
    data = options.data
    require("--data", data, data is None or local_path(data).exists(), "an .npz file or a folder that exists")
    output = options.output or f"runs/{run_path(options.path).absolute().name}"
    require_folder(run_path(output), "choose another --output")
    set_up_jax()
    choices = {"variant": options.variant, "label_dropout": options.label_dropout, "data": data}
    size = (options.size[0], options.size[-1]) if options.size else None
    experiment = import_run(options.path, output, size=size, **choices, report=print)
    shape, flags = "x".join(map(str, experiment.data.image_shape)), "" if data else " --data.path FILE.npz"
    schedule, target = type(experiment.schedule).__name__, type(experiment.target).__name__
    print(
        f"{output}: a network for {shape} images, with the {schedule} schedule of "
        f"{experiment.schedule.build().num_steps} steps, predicting {target}\n"
        f"draw samples:  ddpm-jax sample {output} --num-images 64\n"
        f"train further: ddpm-jax train {output}/experiment.json --workdir {output}{flags} --num-steps 10000 "
        "--optimizer.learning-rate 2e-5 --optimizer.warmup-steps 100 --ema.decay 0.999"
    )
