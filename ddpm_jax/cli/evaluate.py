"""`ddpm-jax evaluate RUN`: draw samples, score them, and write a report with all that the numbers depend on."""

import dataclasses
import time
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import tyro

from ddpm_jax.cli.options import Average, RunFolder, by_default, one_of, parse
from ddpm_jax.cli.sampler_options import SamplerOptions
from ddpm_jax.cli.train import find_experiment
from ddpm_jax.data import Deferred
from ddpm_jax.devices.cluster import ClusterOptions
from ddpm_jax.devices.precision import quoted_precision
from ddpm_jax.devices.setup import set_up_jax
from ddpm_jax.evaluation import evaluate as evaluations
from ddpm_jax.evaluation.evaluate import Evaluation
from ddpm_jax.features.read import read_extractor
from ddpm_jax.run import Run, load_run
from ddpm_jax.storage import log, paths

__all__ = ["EvaluateOptions", "choose_source", "main"]

METAVAR = "SPLIT|FILE|FOLDER"
SOURCES = "a split of the run's data, FILE.npz or a folder of images, or an experiment file or a run for its data"


@dataclass(frozen=True)
class EvaluateOptions:
    """Score a trained run.

    Samples are stored as they are drawn. After an interruption, the same command continues from there."""

    run: RunFolder
    evaluation: Annotated[Evaluation, tyro.conf.arg(name="")] = Evaluation()
    features: Annotated[str, tyro.conf.arg(metavar="NAME")] = "inception"
    """The features: inception (downloaded on first use), inception:PATH, PATH.safetensors, FILE.py:NAME or pixels.
    PATH.safetensors is a classifier from scripts/train_features.py, FILE.py:NAME is a function of your own."""
    reference: Annotated[str | None, by_default("the data that the run was trained on", METAVAR)] = None
    """The images to compare with: a split of the run's data, FILE.npz, a folder, an experiment file or another run."""
    held_out: Annotated[str | None, by_default("the split called test or validation", METAVAR)] = None
    """Real images that the run has not seen, named as for --reference.
    They are scored beside the samples, and bits/dim are measured on them."""
    sampler_options: Annotated[SamplerOptions, tyro.conf.arg(name="")] = SamplerOptions()
    ema: Average = None
    precision: Annotated[
        str | None, one_of("highest", "high", "default"), by_default("$JAX_DEFAULT_MATMUL_PRECISION, or highest")
    ] = None
    """The precision of float32 products in the network and the features.
    highest: full float32. high: TF32 on GPUs, three bfloat16 products on TPUs.
    default: the fastest, TF32 on GPUs and bfloat16 on TPUs."""
    cluster: Annotated[ClusterOptions, tyro.conf.arg(name="")] = ClusterOptions()


def main(arguments: list[str]) -> None:
    """`ddpm-jax evaluate`."""
    options = parse(EvaluateOptions, arguments, "evaluate")
    set_up_jax(options.cluster)
    run = options.sampler_options.applied(load_run(options.run, ema=options.ema))
    data = run.experiment.data
    reference = choose_source("--reference", run, options.reference)
    held_out = choose_source("--held-out", run, options.held_out)
    if reference is None and isinstance(data, Deferred) and data.path is None:
        raise ValueError(f"--reference is None, and the data of {options.run} are not known; expected {SOURCES}")
    start = time.monotonic()
    extractor = None if options.evaluation.metrics == ("bpd",) else read_extractor(options.features)
    with jax.default_matmul_precision(options.precision or quoted_precision()):
        given = {"reference": reference, "held_out": held_out}
        found = evaluations.evaluate(run, options.run, extractor, options.evaluation, **given)
    if found is not None:
        report, place = found
        print(report.as_text())
        spent = log.format_time(time.monotonic() - start)
        print(f"\nreport: {place / 'report.html'}, {place / 'report.json'} ({spent})")


def choose_source(flag: str, run: Run, text: str | None) -> Any:
    """The images that an option names.

    Args:
        flag: the option, for messages.
        run: the run, whose data may have the split.
        text: the value of the option: one of SOURCES; None if it was not given.

    Returns:
        The source of the images; None if the option was not given.

    Raises:
        ValueError: nothing of that name is found; the message says what is accepted.
        FileNotFoundError: the experiment file does not exist.
    """
    data = run.experiment.data
    if text is None:
        return None
    if experiment := find_experiment(text):
        return experiment.data
    path = paths.run_path(text)
    if path.suffix == ".npz" or path.is_dir():
        labelled = Deferred(run.image_shape, text, labels=True)
        has_labels = labelled.has_labels(run.experiment.net.num_classes)
        return labelled.source if has_labels else Deferred(run.image_shape, text).source
    if not hasattr(data, "split"):
        raise ValueError(f"{flag} is {text!r}, and {type(data).__name__} has no splits; expected {SOURCES}")
    try:
        return dataclasses.replace(data, split=text)
    except ValueError as error:
        raise ValueError(f"{flag} is {text!r}; expected {SOURCES} ({error})") from None
