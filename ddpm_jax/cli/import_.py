"""`ddpm-jax import PATH`: make a run of a network that diffusers wrote."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from ddpm_jax.errors import require
from ddpm_jax.storage.paths import local_path, require_folder, run_path


@dataclass(frozen=True)
class ImportOptions:
    """Make a run of a folder of diffusers, a pipeline or a UNet2DModel alone, with weights in safetensors.

    The run samples and is evaluated like any other, and goes on training from these weights."""

    path: Annotated[str, tyro.conf.arg(metavar="PATH"), tyro.conf.Positional]
    """The folder of diffusers."""
    output: Annotated[str | None, tyro.conf.arg(metavar="RUN")] = None
    """The folder of the run, which must be new; runs/ and the name of PATH unless given."""
    size: Annotated[tuple[int, ...], tyro.conf.arg(metavar="HEIGHT [WIDTH]")] = ()
    """Height and width of the images, or both as one number; those of the config unless given."""
    variant: str | None = None
    """Which of several files of weights: fp16 for diffusion_pytorch_model.fp16.safetensors."""
    label_dropout: float = 0.0
    """Of a class-conditional network: the last class stands for no class, and takes the place of this share of
    labels in training."""
    data: Annotated[str | None, tyro.conf.arg(metavar="FILE.npz|FOLDER")] = None
    """The images that it will go on learning from; --data.path of the training says it later."""


def main(arguments: list[str]) -> None:
    """`ddpm-jax import`."""
    options = tyro.cli(ImportOptions, args=arguments, prog="ddpm-jax import", config=(tyro.conf.DisallowNone,))
    holds = len(options.size) <= 2 and min(options.size, default=1) >= 1
    require("--size", options.size, holds, "one or two whole numbers, at least 1")
    data = options.data
    require("--data", data, data is None or local_path(data).exists(), "an .npz file or a folder that exists")

    from ddpm_jax.devices.setup import set_up_jax
    from ddpm_jax.interop.runs import import_run

    output = options.output or f"runs/{run_path(options.path).absolute().name}"
    require_folder(run_path(output), "choose another --output")
    set_up_jax()
    choices = {"variant": options.variant, "label_dropout": options.label_dropout, "data": options.data}
    size = (options.size[0], options.size[-1]) if options.size else None
    experiment = import_run(options.path, output, size=size, **choices, report=print)
    of, where = experiment.data.image_shape, "" if experiment.data.path else " --data.path FILE.npz"
    print(
        f"{output}: a network of {'x'.join(map(str, of))} images, {type(experiment.schedule).__name__} schedule of "
        f"{experiment.schedule.build().num_steps} steps, predicting {type(experiment.target).__name__}\n"
        f"draw with:     ddpm-jax sample {output} --num-images 64\n"
        f"train further: ddpm-jax train {output}/experiment.json --workdir {output}{where} --num-steps 10000 "
        "--optimizer.learning-rate 2e-5 --optimizer.warmup-steps 100 --ema.decay 0.999"
    )
