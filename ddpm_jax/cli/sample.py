"""`ddpm-jax sample RUN`: draw images from a trained run into an .npz, and a picture beside it."""

import io
import time
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import tyro

from ddpm_jax.cli.sampler_options import SamplerOptions, choose_clipping, choose_sampler
from ddpm_jax.devices.cluster import ClusterOptions
from ddpm_jax.errors import require
from ddpm_jax.storage.paths import RunPath, require_folder, run_path, write_bytes

IN_PICTURE = 100


@dataclass(frozen=True)
class SampleOptions:
    """Draw images from a trained run, with its averaged parameters."""

    run: Annotated[str, tyro.conf.arg(metavar="RUN"), tyro.conf.Positional]
    """The folder of the run."""
    num_images: int = 64
    """How many images to draw."""
    output: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Where they go: an .npz with `images` uint8 [n, height, width, channels], and beside it a .png, a picture
    of the first 100 of them; RUN/samples.npz unless given."""
    seed: int = 0
    """Image i is a function of the seed and i."""
    how: Annotated[SamplerOptions, tyro.conf.arg(name="")] = SamplerOptions()
    guidance: float | None = None
    """Scale of classifier-free guidance: 1 is none, more stresses the class; for networks with label dropout."""
    label: int | None = None
    """The class to draw, for a class-conditional network; all classes in turn unless given."""
    ema: float | None = None
    """Which average of the parameters draws: a decay or width that the run kept, the first of them unless given; of a
    run with PowerEma any width, made from its snapshots."""
    cluster: Annotated[ClusterOptions, tyro.conf.arg(name="")] = ClusterOptions()


def main(arguments: list[str]) -> None:
    """`ddpm-jax sample`."""
    options = tyro.cli(SampleOptions, args=arguments, prog="ddpm-jax sample", config=(tyro.conf.DisallowNone,))
    output = run_path(options.output) if options.output else run_path(options.run) / "samples.npz"
    require("--output", str(output), output.suffix == ".npz", "a file name that ends in .npz")
    require("--output", str(output), not output.is_dir(), "the name of a file; this is a folder")
    require("--num-images", options.num_images, options.num_images >= 1, "at least 1")
    require("--seed", options.seed, 0 <= options.seed < 2**32, "0 or more, less than 2^32")

    import jax

    from ddpm_jax.data.images import to_pixels
    from ddpm_jax.devices.setup import set_up_jax
    from ddpm_jax.evaluation.progress import ProgressBar
    from ddpm_jax.run import load_run
    from ddpm_jax.storage.pictures import grid, save_png

    set_up_jax(options.cluster)
    run = load_run(options.run, ema=options.ema)
    require_folder(output.parent, "choose another --output")  # before anything is drawn
    sampler = choose_sampler(run.experiment.sampler, options.how)
    labels = choose_labels(run.experiment.net.num_classes, options)
    start = time.monotonic()
    choices = {"sampler": sampler, "clip": choose_clipping(options.how), "labels": labels, "guidance": options.guidance}
    with ProgressBar("drawing", options.num_images, quiet=jax.process_index() > 0) as waiting:
        x = run.sample(jax.random.key(options.seed), options.num_images, **choices, reached=waiting.reached)
    seconds = time.monotonic() - start
    if jax.process_index() > 0:
        return  # all take part in the drawing, and one writes
    images = np.asarray(to_pixels(x))
    save_images(output, images)
    picture = output.with_suffix(".png")
    save_png(picture, grid(images[:IN_PICTURE]))
    average = "" if options.ema is None else f", average {run.ema},"
    print(f"{len(images)} images from step {run.step}{average} in {seconds:.1f} s: {output}, {picture}")


def choose_labels(num_classes: int | None, options: SampleOptions) -> np.ndarray | None:
    """The class asked for, for every image; None for all classes in turn, or none."""
    if options.label is None:
        return None
    expected = "none, as the network is not class-conditional"
    if num_classes is not None:
        expected = f"one of the classes, 0..{num_classes - 1}"
    require("--label", options.label, num_classes is not None and 0 <= options.label < num_classes, expected)
    return np.full(options.num_images, options.label)


def save_images(path: RunPath, images: np.ndarray) -> None:
    """Write images as an .npz, whole or not at all."""
    file = io.BytesIO()
    np.savez_compressed(file, images=images)
    write_bytes(path, file.getvalue())
