"""`ddpm-jax evaluate RUN`: draw samples, score them, and write a report with all that the numbers depend on."""

import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ddpm_jax.cli.sampler_options import SamplerOptions, choose_clipping, choose_sampler
from ddpm_jax.devices.cluster import ClusterOptions
from ddpm_jax.storage.paths import run_path

if TYPE_CHECKING:
    from ddpm_jax.run import Run

SOURCES = "a split of the run's data, FILE.npz or a folder of images, or an experiment file or a run for its data"


@dataclass(frozen=True)
class EvaluateOptions:
    """Score a trained run: samples are drawn in shards, so that an evaluation that was killed goes on where it was."""

    run: Annotated[str, tyro.conf.arg(metavar="RUN"), tyro.conf.Positional]
    """The folder of the run."""
    metrics: Annotated[str, tyro.conf.arg(metavar="NAME,NAME...")] = "fid,kid,pr,nn,bpd"
    """Of fid (Frechet distance), kid (kernel distance), pr (precision, recall, density, coverage), is (Inception
    score), swd (sliced Wasserstein distance), nn (nearest training images) and bpd (bits/dim)."""
    num_samples: int = 50_000
    """How many images are drawn; with fewer than 10,000 the scores are named so."""
    features: Annotated[str, tyro.conf.arg(metavar="NAME")] = "inception"
    """What the scores compare: inception (downloaded when first used), inception:PATH, a classifier's PATH.safetensors
    by scripts/train_features.py, FILE.py:NAME for a function of your own, or pixels."""
    reference: Annotated[str | None, tyro.conf.arg(metavar="SPLIT|FILE|FOLDER")] = None
    """What samples are compared with: a split of the run's data, an .npz or a folder of images, or the data of an
    experiment file; what the run was trained on unless given."""
    held_out: Annotated[str | None, tyro.conf.arg(metavar="SPLIT|FILE|FOLDER")] = None
    """Real images that the run has not seen, which are scored too, and which bits/dim is of, in the ways of
    --reference; the split called test or validation unless given."""
    bound_terms: int | None = None
    """Draw so many terms of the bound for each image: bits/dim without bias, in less time; all T terms unless given."""
    seed: int = 0
    """Image i is a function of the seed and i."""
    how: Annotated[SamplerOptions, tyro.conf.arg(name="")] = SamplerOptions()
    guidance: float | None = None
    """Scale of classifier-free guidance: 1 is none, more stresses the class; for networks with label dropout."""
    labels: Literal["reference", "balanced"] = "reference"
    """The classes that are drawn, of a class-conditional network. reference: each image's at random, as frequent as in
    the reference, or in the training data where it has no labels. balanced: all in turn."""
    ema: float | None = None
    """Which average of the parameters draws, as in `ddpm-jax sample`."""
    batch_size: int = 256
    """Images drawn at a time on each device; what a kill can lose."""
    precision: Literal["highest", "high", "default"] | None = None
    """Of the float32 products of the network and the features. highest: in full. high: three bfloat16 products on TPUs,
    TF32 on GPUs. default: what is fastest, bfloat16 on TPUs. Without this option: JAX_DEFAULT_MATMUL_PRECISION, or
    highest."""
    cluster: Annotated[ClusterOptions, tyro.conf.arg(name="")] = ClusterOptions()


def main(arguments: list[str]) -> None:
    """`ddpm-jax evaluate`."""
    options = tyro.cli(EvaluateOptions, args=arguments, prog="ddpm-jax evaluate", config=(tyro.conf.DisallowNone,))

    import jax

    from ddpm_jax.data.deferred import Deferred
    from ddpm_jax.devices.precision import quoted_precision
    from ddpm_jax.devices.setup import set_up_jax
    from ddpm_jax.evaluation.evaluate import Evaluation, evaluate
    from ddpm_jax.features.read import read_extractor
    from ddpm_jax.run import load_run
    from ddpm_jax.storage.log import format_time

    evaluation = Evaluation(
        metrics=tuple(name.strip() for name in options.metrics.split(",")),
        num_samples=options.num_samples,
        seed=options.seed,
        guidance=options.guidance,
        labels=options.labels,
        bound_terms=options.bound_terms,
        batch_size=options.batch_size,
    )
    set_up_jax(options.cluster)
    run = load_run(options.run, ema=options.ema)
    data, sampler = run.experiment.data, choose_sampler(run.experiment.sampler, options.how)
    clip = choose_clipping(options.how) or run.experiment.clip
    run = dataclasses.replace(run, experiment=dataclasses.replace(run.experiment, sampler=sampler, clip=clip))
    reference = choose_source("--reference", run, options.reference)
    held_out = choose_source("--held-out", run, options.held_out)
    if reference is None and isinstance(data, Deferred) and data.path is None:
        raise ValueError(f"--reference is None, and the data of {options.run} are not known; expected {SOURCES}")
    start = time.monotonic()
    extractor = None if evaluation.metrics == ("bpd",) else read_extractor(options.features)
    with jax.default_matmul_precision(options.precision or quoted_precision()):
        found = evaluate(run, options.run, extractor, evaluation, reference=reference, held_out=held_out)
    if found is not None:
        report, place = found
        print(report.as_text())
        print(f"\nreport: {place / 'report.html'}, {place / 'report.json'} ({format_time(time.monotonic() - start)})")


def choose_source(flag: str, run: "Run", text: str | None) -> Any:
    """The images that a flag names, in one of the ways of SOURCES; None where it is not given."""
    from ddpm_jax.cli.train import read_experiment

    data = run.experiment.data
    if text is None:
        return None
    path = run_path(text)
    if (path / "experiment.json").is_file():
        return read_experiment(path / "experiment.json").data
    if path.suffix in (".py", ".json"):
        return read_experiment(path).data
    if path.suffix == ".npz" or path.is_dir():
        return images_at(run, text)
    if not hasattr(data, "split"):
        raise ValueError(f"{flag} is {text!r}, and {type(data).__name__} has no splits; expected {SOURCES}")
    try:
        return dataclasses.replace(data, split=text)
    except ValueError as error:
        raise ValueError(f"{flag} is {text!r}; expected {SOURCES} ({error})") from None


def images_at(run: "Run", path: str) -> Any:
    """The images of an .npz file or a folder, with labels where the run's network has classes and they have them.

    Those of an .npz file are its array `labels`; those of a folder its sub-folders, if all images are in one and there
    are as many as classes.
    """
    from ddpm_jax.data.deferred import Deferred

    labelled = Deferred(run.image_shape, path, labels=True)
    num_classes = run.experiment.net.num_classes
    return labelled.source if labelled.has_labels(num_classes) else Deferred(run.image_shape, path).source
