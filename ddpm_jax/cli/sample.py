"""`ddpm-jax sample RUN`: draw images from a trained run into an .npz file, with a picture beside it."""

import time
from dataclasses import dataclass
from typing import Annotated

import jax
import numpy as np
import tyro
from jaxtyping import Int, UInt8

from ddpm_jax.cli.options import Average, RunFolder, by_default, parse
from ddpm_jax.cli.sampler_options import SamplerOptions
from ddpm_jax.data.images import to_pixels
from ddpm_jax.devices.cluster import ClusterOptions
from ddpm_jax.devices.setup import set_up_jax
from ddpm_jax.errors import require
from ddpm_jax.evaluation.progress import ProgressBar
from ddpm_jax.run import load_run
from ddpm_jax.storage import paths, pictures

__all__ = ["SampleOptions", "main"]

IN_PICTURE = 100


@dataclass(frozen=True)
class SampleOptions:
    """Draw images from a trained run, with an average of its parameters."""

    run: RunFolder
    num_images: int = 64
    """The number of images."""
    output: Annotated[str | None, by_default("RUN/samples.npz", "FILE")] = None
    """The .npz file to write, with `images` uint8 [n, height, width, channels].
    A picture of the first 100 images is written beside it, as a .png file."""
    seed: int = 0
    """The seed; image i depends on the seed and on i alone."""
    sampler_options: Annotated[SamplerOptions, tyro.conf.arg(name="")] = SamplerOptions()
    guidance: Annotated[float | None, by_default("no guidance")] = None
    """The scale of classifier-free guidance, for networks trained with label dropout."""
    label: Annotated[int | None, by_default("all classes in turn")] = None
    """The class to draw, for a class-conditional network."""
    ema: Average = None
    cluster: Annotated[ClusterOptions, tyro.conf.arg(name="")] = ClusterOptions()


def main(arguments: list[str]) -> None:
    """`ddpm-jax sample`."""
    options = parse(SampleOptions, arguments, "sample")
    output = paths.run_path(options.output) if options.output else paths.run_path(options.run) / "samples.npz"
    require("--output", str(output), output.suffix == ".npz", "a file name that ends in .npz")
    require("--output", str(output), not output.is_dir(), "the name of a file; this is a folder")
    require("--num-images", options.num_images, options.num_images >= 1, "at least 1")
    require("--seed", options.seed, 0 <= options.seed < 2**32, "0 or more, less than 2^32")
    set_up_jax(options.cluster)
    run = options.sampler_options.applied(load_run(options.run, ema=options.ema))
    paths.require_folder(output.parent, "choose another --output")  # before anything is drawn
    labels = choose_labels(run.experiment.net.num_classes, options)
    start, key = time.monotonic(), jax.random.key(options.seed)
    with ProgressBar("drawing", options.num_images, quiet=jax.process_index() > 0) as progress:
        x = run.sample(key, options.num_images, labels=labels, guidance=options.guidance, reached=progress.reached)
    seconds = time.monotonic() - start
    if jax.process_index() > 0:
        return  # every process draws; the first one writes
    picture = save_images(output, np.asarray(to_pixels(x)))
    average = "" if options.ema is None else f", average {run.ema},"
    print(f"{len(x)} images from step {run.step}{average} in {seconds:.1f} s: {output}, {picture}")


def choose_labels(num_classes: int | None, options: SampleOptions) -> Int[np.ndarray, " n"] | None:
    """The label of each image; None if the options name no class.

    Args:
        num_classes: the number of classes of the network; None for an unconditional one.
        options: the options of the command.

    Raises:
        ValueError: the network does not know the class.
    """
    if options.label is None:
        return None
    expected = "none, as the network is not class-conditional"
    if num_classes is not None:
        expected = f"one of the classes, 0..{num_classes - 1}"
    require("--label", options.label, num_classes is not None and 0 <= options.label < num_classes, expected)
    return np.full(options.num_images, options.label)


def save_images(path: paths.RunPath, images: UInt8[np.ndarray, "n height width channels"]) -> paths.RunPath:
    """Write images as an .npz file, and the first 100 as a picture.

    Args:
        path: the .npz file.
        images: the images.

    Returns:
        The path of the picture, beside the .npz file.
    """
    paths.write_file(path, lambda file: np.savez_compressed(file, images=images))
    picture = path.with_suffix(".png")
    pictures.save_png(picture, pictures.grid(images[:IN_PICTURE]))
    return picture
