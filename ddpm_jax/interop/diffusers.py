"""Networks from and for diffusers: folders of a `DDPMPipeline`, or of a `UNet2DModel` alone.

    from ddpm_jax.interop import diffusers

    model = diffusers.read("ddpm-cifar10-32")
    x = sample(key, model.denoiser(), model.sampler, shape=(16, 32, 32, 3))
    diffusers.write("mine", model)                               # DDPMPipeline.from_pretrained("mine")

The weights (`names`), the network (`unet_config`) and the mathematics (`scheduler_config`) are the same on both sides;
otherwise an error names the field that one side cannot express.  Weights are safetensors, in float32; pickles are never
read.  `ddpm-jax import` and `ddpm-jax export` do this for runs (`runs`).
"""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm_jax.diffusion.clipping import Clip, Clipping
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.schedule import Linear, Schedule
from ddpm_jax.diffusion.targets import Eps, Target
from ddpm_jax.diffusion.variance import FixedSmall, LearnedRange, Variance
from ddpm_jax.errors import require
from ddpm_jax.interop import folder as files
from ddpm_jax.interop import scheduler_config, unet_config
from ddpm_jax.interop.names import from_diffusers, to_diffusers
from ddpm_jax.nets.unet import UNet
from ddpm_jax.sampling import Ancestral, Sampler
from ddpm_jax.storage.paths import RunPath, is_remote, run_path

__all__ = ["Model", "read", "write"]

# The folder beside `unet` in which the training scripts of diffusers save the average of the weights.
AVERAGE = "unet_ema"
# The version of diffusers that has the fields which are written.
VERSION = "0.35.0"


@dataclass(frozen=True)
class Model:
    """A network with its parameters and the other parts of its denoiser."""

    net: UNet
    params: Any
    """The parameters, float32, as for `net.bind`."""
    image_shape: tuple[int, int, int]
    """(height, width, channels)."""
    schedule: Schedule = Linear()
    target: Target = Eps()
    variance: Variance = FixedSmall()
    clip: Clipping = Clip()
    sampler: Sampler = Ancestral()

    def denoiser(self, labels: Any = None) -> Denoiser:
        """The network as a denoiser; labels: int32 [batch] for a class-conditional network, None for another."""
        predict = self.net.bind(self.params) if labels is None else self.net.bind(self.params, labels=labels)
        return Denoiser(predict, self.schedule.build(), self.target, self.variance, self.clip)


def read(
    folder: str | os.PathLike,
    *,
    size: tuple[int, int] | None = None,
    variant: str | None = None,
    label_dropout: float = 0.0,
    report: Callable[[str], None] = warnings.warn,
) -> Model:
    """The model in a diffusers folder: a pipeline of a `UNet2DModel` and a scheduler, or a `UNet2DModel` alone.

    Args:
        folder: the diffusers folder.
        size: (height, width) of the images; None for the sample_size of the config.
        variant: the variant of the files of weights, such as fp16; None for none.
        label_dropout: more than 0 if the last class embedding is that of no class.
        report: takes a line for each assumption.

    Returns:
        The model.

    Raises:
        FileNotFoundError: a file is missing, or there are pickles only.
        ValueError: this library cannot express a field; the message names the file, the field, its value and what is
            accepted.
    """
    folder = run_path(folder)
    if not folder.is_dir():
        # It may be the name of a model, ORGANISATION/NAME.
        is_name = str(folder).count("/") == 1 and not str(folder).startswith((".", "/"))
        hub = f"; fetch a model from the Hugging Face hub first: hf download {folder} --local-dir FOLDER"
        raise FileNotFoundError(f"there is no folder {folder}; expected a diffusers folder{hub if is_name else ''}")
    _check_pipeline(folder)
    config = files.part_file(folder, "unet", files.CONFIG)
    if config is None:
        raise FileNotFoundError(
            f"{folder} has neither unet/config.json nor config.json; expected those of a UNet2DModel"
        )
    if config.parent.name == "unet" and (folder / AVERAGE / files.CONFIG).exists():
        report(f"{folder} also has an average of the weights, which is not read; to read it, import {folder / AVERAGE}")
    net, image_shape = unet_config.read_config(files.read_json(config), str(config), size, label_dropout)
    parts = _read_parts(folder, net, report)
    state = files.read_weights(config.parent, variant)
    shapes = unet_config.parameter_shapes(net, image_shape)
    params = from_diffusers(state, shapes, len(net.channel_multipliers), str(config.parent))
    return Model(net, params, image_shape, **parts)


def _check_pipeline(folder: RunPath) -> None:
    """Raise ValueError if a pipeline has other parts than a U-Net and a scheduler."""
    path = folder / files.INDEX
    if not path.exists():
        return
    parts = {name: value for name, value in files.read_json(path).items() if not name.startswith("_")}
    for name, value in parts.items():
        kind = value[-1] if isinstance(value, list) and value else value
        known = {"unet": (unet_config.CLASS,), "scheduler": tuple(scheduler_config.DEFAULTS)}.get(name, (None,))
        expected = " or ".join(map(repr, known)) if name in ("unet", "scheduler") else "no such part"
        require(f"{path}: {name}", kind, kind in known, f"{expected}; a pipeline of a U-Net and a scheduler of images")


def _scheduler_above(folder: RunPath) -> RunPath | None:
    """The config in RUN/scheduler for RUN/unet or RUN/checkpoint-500/unet_ema; None without one that can be read."""
    place = folder if is_remote(folder) else Path(folder).absolute()
    for above in list(place.parents)[:2]:
        path = above / "scheduler" / files.SCHEDULER
        if path.exists() and files.read_json(path).get("_class_name") in scheduler_config.DEFAULTS:
            return path
    return None


def _read_parts(folder: RunPath, net: UNet, report: Callable[[str], None]) -> dict[str, Any]:
    """The parts in the config of the scheduler; without one, those that diffusers assumes."""
    path = files.part_file(folder, "scheduler", files.SCHEDULER)
    if path is None and (path := _scheduler_above(folder)) is not None:
        report(f"{folder} has no {files.SCHEDULER}; using {path}")
    learned = "learned_range" if net.out_multiplier == 2 else "fixed_small"
    if path is None:
        report(
            f"{folder} has no {files.SCHEDULER}; using the defaults of diffusers' DDPMScheduler: 1000 steps with "
            f"linear betas from 0.0001 to 0.02, the noise as the target, clipping, and variance_type {learned!r}"
        )
        return scheduler_config.read_config({"variance_type": learned}, "the defaults")
    config = files.read_json(path)
    parts = scheduler_config.read_config(config, str(path))
    given = config.get("variance_type", "fixed_small")
    holds = isinstance(parts["variance"], LearnedRange) == (net.out_multiplier == 2)
    expected = "'learned_range'" if net.out_multiplier == 2 else "a fixed one"
    require(
        f"{path}: variance_type", given, holds, f"{expected}, as out_channels is {net.out_multiplier} x in_channels"
    )
    return parts


def write(
    folder: str | os.PathLike,
    model: Model,
    *,
    card: str | None = None,
    report: Callable[[str], None] = warnings.warn,
) -> None:
    """Write a folder that diffusers' `DDPMPipeline.from_pretrained` reads, whole or not at all.

    Args:
        folder: the folder to write, which must be new.
        model: the model; its scheduler is written as a `DDPMScheduler`, whatever the sampler.
        card: the text of README.md; None for no such file.
        report: takes a line if diffusers does not have the grid of the sampler.

    Raises:
        RunError: the folder exists already.
        ValueError: diffusers cannot express a field; the message names the field, its value and what is accepted.
            Nothing is written.
    """
    config = unet_config.write_config(model.net, model.image_shape)
    scheduler = scheduler_config.write_config(
        model.schedule, model.target, model.variance, model.clip, model.sampler.grid, report
    )
    learned = isinstance(model.variance, LearnedRange)
    require("net.out_multiplier", model.net.out_multiplier, model.net.out_multiplier == 1 + learned, f"{1 + learned}")
    state = to_diffusers(model.params, len(model.net.channel_multipliers))
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": VERSION,
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", unet_config.CLASS],
    }
    with files.appearing(run_path(folder), files.INDEX, "give another folder") as made:
        for path, value in {"unet/config.json": config, "scheduler/scheduler_config.json": scheduler}.items():
            files.write_json(made / path, {"_class_name": value["_class_name"], "_diffusers_version": VERSION, **value})
        files.write_weights(made / "unet" / f"{files.WEIGHTS}.safetensors", state)
        if card is not None:
            (made / "README.md").write_text(card, encoding="utf-8")
        files.write_json(made / files.INDEX, index)
