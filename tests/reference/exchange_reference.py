"""The exchange of networks held against diffusers itself, in both directions.

    pip install -e . torch diffusers
    python tests/reference/exchange_reference.py          # three minutes on two CPU cores

For each of several `UNet2DModel`s with random weights, made and saved by diffusers: what `interop.diffusers.read` makes
of the folder gives the same outputs; what `write` makes of that is read by `DDPMPipeline.from_pretrained` and gives
the same outputs; and reading that again gives the same numbers, bit by bit, and the same specs.  A whole run of 1000
steps from the same z_T with the same noises is that of diffusers' `DDPMScheduler`.  Expect outputs to differ by less
than 1e-5, and the run by less than 1e-4.

Writes tests/reference/diffusers, a small pipeline as diffusers saves it, and beside it diffusers.npz, its outputs.
"""

import inspect
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from diffusers_reference import numbers

from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.interop import diffusers as exchange
from ddpm_jax.interop import scheduler_config, unet_config
from ddpm_jax.sampling import Ancestral, StepInput

REFERENCE = Path(__file__).parent
LINEAR = {"beta_schedule": "linear", "variance_type": "fixed_large"}
# The config of google/ddpm-cifar10-32, as published.
CIFAR10 = {
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
# That of google/ddpm-celebahq-256, 113,673,219 parameters.
CELEBAHQ = {
    **CIFAR10,
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
    "sample_size": 256,
}
# That of diffusers' training tutorial: everything else is at its default.
TUTORIAL = {
    "sample_size": 128,
    "layers_per_block": 2,
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": CELEBAHQ["down_block_types"],
    "up_block_types": CELEBAHQ["up_block_types"],
}
PLAIN = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
ATTENDING = {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}
SMALL = {"block_out_channels": [32, 64], "layers_per_block": 1, "norm_num_groups": 16, "sample_size": 16, **ATTENDING}
# Each (config of the network, config of the scheduler, what `read` is told).
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "google/ddpm-cifar10-32": (CIFAR10, LINEAR, {}),
    "tutorial": ({**TUTORIAL, "sample_size": 64}, {}, {}),
    "diffusers' defaults, narrower": (
        {"sample_size": 32, "block_out_channels": [32, 64, 96, 128], "norm_num_groups": 8},
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {},
    ),
    "a channel in each group, 28x28": (
        {
            "sample_size": 28,
            "in_channels": 1,
            "out_channels": 1,
            "block_out_channels": [32, 64, 64],
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        },
        {"beta_schedule": "scaled_linear", "clip_sample": False},
        {},
    ),
    "learned variance, scale_shift, classes": (
        {**SMALL, "out_channels": 6, "resnet_time_scale_shift": "scale_shift", "num_class_embeds": 10},
        {"variance_type": "learned_range", "thresholding": True, "sample_max_value": 2.0},
        {},
    ),
    "scale_shift with a normalised middle, null label": (
        {
            **SMALL,
            "resnet_time_scale_shift": "scale_shift",
            "attn_norm_num_groups": 16,
            "num_class_embeds": 11,
            "attention_head_dim": 16,
        },
        {"prediction_type": "sample", "rescale_betas_zero_snr": True, "timestep_spacing": "linspace"},
        {"label_dropout": 0.1},
    ),
    "no attention at all, not square": (
        {**SMALL, **PLAIN, "add_attention": False, "sample_size": [16, 24], "freq_shift": 1, "dropout": 0.3},
        {"trained_betas": np.linspace(1e-3, 0.3, 25).tolist(), "num_train_timesteps": 25},
        {},
    ),
    "one head, sigmoid, four channels": (
        {**SMALL, "attention_head_dim": None, "in_channels": 4, "out_channels": 4, "downsample_padding": 0},
        {"beta_schedule": "sigmoid", "clip_sample_range": 2.0, "steps_offset": 1, "variance_type": "fixed_small_log"},
        {},
    ),
}
TINY = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [4, 8],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "attention_head_dim": 4,
    "dropout": 0.1,
    **ATTENDING,
}
TINY_SCHEDULER = {"num_train_timesteps": 20, "beta_schedule": "squaredcos_cap_v2", "variance_type": "fixed_large"}


def save(folder: Path, config: dict[str, Any], scheduler: dict[str, Any], **how: Any) -> Any:
    """A pipeline of diffusers with random weights, which it saves; every layer does something."""
    import torch  # pyright: ignore[reportMissingImports]
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    net = UNet2DModel(**config).eval()
    for name, parameter in net.named_parameters():
        if parameter.ndim == 1:
            parameter.data = 0.1 * torch.randn_like(parameter) + (1.0 if "norm" in name and "weight" in name else 0.0)
    pipeline = DDPMPipeline(net, DDPMScheduler(**scheduler))
    pipeline.save_pretrained(folder, **how)
    return pipeline


def inputs(net: Any, image_shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """z, t and labels of a batch of two."""
    t = np.array([1, 20], np.int32)
    labels = None if net.num_classes is None else np.array([0, net.null_label or net.num_classes - 1], np.int32)
    return numbers("exchange", (2, *image_shape)), t, labels


def theirs(net: Any, z: np.ndarray, t: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """diffusers' output, NHWC; its timesteps count from 0."""
    import torch  # pyright: ignore[reportMissingImports]

    given = None if labels is None else torch.from_numpy(labels)
    with torch.no_grad():
        output = net(torch.from_numpy(z.transpose(0, 3, 1, 2).copy()), torch.from_numpy(t - 1), given).sample
    return output.numpy().transpose(0, 2, 3, 1)


apply = jax.jit(lambda predict, z, t: predict(z, t))


def ours(model: exchange.Model, z: np.ndarray, t: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """Our output."""
    return np.asarray(apply(model.net.bind(model.params, labels), z, t))


def same(a: exchange.Model, b: exchange.Model) -> bool:
    """Whether two models have the same specs and, bit by bit, the same parameters."""
    trees = [jax.tree.flatten(model.params) for model in (a, b)]
    leaves = zip(trees[0][0], trees[1][0], strict=True)
    specs = replace(a, params=None) == replace(b, params=None)
    return specs and trees[0][1] == trees[1][1] and all(x.tobytes() == y.tobytes() for x, y in leaves)


def there_and_back(folder: Path, config: dict[str, Any], scheduler: dict[str, Any], told: dict[str, Any]) -> str:
    """The three comparisons of a case, as text."""
    from diffusers import DDPMPipeline  # pyright: ignore[reportMissingImports]

    report: Callable[[str], None] = lambda text: print(f"  {text}")  # noqa: E731
    pipeline = save(folder / "theirs", config, scheduler)
    model = exchange.read(folder / "theirs", **told, report=report)
    given = inputs(model.net, model.image_shape)
    expected = theirs(pipeline.unet, *given)
    imported = np.abs(ours(model, *given) - expected).max()
    exchange.write(folder / "ours", model, report=report)
    written = DDPMPipeline.from_pretrained(folder / "ours")
    exported = np.abs(theirs(written.unet.eval(), *given) - expected).max()
    betas = np.abs(written.scheduler.betas.numpy() - pipeline.scheduler.betas.numpy()).max()
    identical = same(model, exchange.read(folder / "ours", **told, report=report))
    keys = ("variance_type", "prediction_type", "timestep_spacing", "clip_sample", "thresholding")
    changed = [key for key in keys if written.scheduler.config[key] != pipeline.scheduler.config[key]]
    assert imported < 1e-4, imported
    assert exported < 1e-4, exported
    assert identical
    return (
        f"outputs of std {expected.std():.2f}, imported {imported:.1e}, exported {exported:.1e}, betas {betas:.1e}, "
        f"read again: the same; other fields of the scheduler: {', '.join(changed) or 'the same'}"
    )


def noises(steps: int, shape: tuple[int, ...]) -> np.ndarray:
    """z_T, and the noise of each step: [steps + 1, *shape], of variance 1, a function of the shape."""
    return numbers("trajectory", (steps + 1, *shape))


def their_run(pipeline: Any, eps: np.ndarray) -> np.ndarray:
    """The image that diffusers' scheduler draws with these noises, over all of its steps; NHWC."""
    import torch  # pyright: ignore[reportMissingImports]
    from diffusers.schedulers import scheduling_ddpm  # pyright: ignore[reportMissingImports]

    drawn = iter(torch.from_numpy(eps.transpose(0, 1, 4, 2, 3).copy()))
    image, original = next(drawn), scheduling_ddpm.randn_tensor
    scheduling_ddpm.randn_tensor = lambda *_, **__: next(drawn)
    pipeline.scheduler.set_timesteps(pipeline.scheduler.config.num_train_timesteps)
    try:
        with torch.no_grad():
            for t in pipeline.scheduler.timesteps:
                image = pipeline.scheduler.step(pipeline.unet(image, t).sample, t, image).prev_sample
    finally:
        scheduling_ddpm.randn_tensor = original
    return image.numpy().transpose(0, 2, 3, 1)


@jax.jit
def our_step(decoder: Denoiser, z: jax.Array, t: jax.Array, noise: jax.Array) -> jax.Array:
    """One step of ancestral sampling, t -> t - 1, with a noise that is given."""
    now = StepInput(z, decoder.process.step(t, t - 1), decoder.denoise(z, jnp.full(z.shape[:1], t)), noise)
    return Ancestral().step(decoder, now, ())[0]


def our_run(model: exchange.Model, eps: np.ndarray) -> np.ndarray:
    """The image that our sampler draws with these noises, over all T steps."""
    decoder = model.denoiser()
    z, steps = jnp.asarray(eps[0]), decoder.process.num_steps
    for index, t in enumerate(range(steps, 0, -1), 1):
        z = our_step(decoder, z, jnp.int32(t), eps[index])
    return np.asarray(z)


def runs(folder: Path) -> None:
    """Whole runs of 1000 steps, beside one another."""
    for target, clip in (("epsilon", True), ("epsilon", False), ("v_prediction", False)):
        for variance in ("fixed_small", "fixed_large"):
            scheduler = {"variance_type": variance, "prediction_type": target, "clip_sample": clip}
            here = folder / f"{target} {variance} {clip}"
            pipeline = save(here, {**TINY, "block_out_channels": [16, 32]}, scheduler)
            eps = noises(1000, (2, 8, 8, 1))
            expected = their_run(pipeline, eps)
            difference = np.abs(our_run(exchange.read(here), eps) - expected).max()
            largest = np.abs(expected).max()
            print(
                f"1000 steps, {target}, {variance}, clip {clip}: up to {largest:.3g}, difference {difference:.1e}",
                flush=True,
            )
            assert difference < 1e-3 * max(largest, 1), difference


def fields() -> None:
    """Every field of diffusers is known here, with its default."""
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel  # pyright: ignore[reportMissingImports]

    for cls, known in (
        (UNet2DModel, unet_config.DEFAULTS),
        (DDPMScheduler, scheduler_config.DEFAULTS["DDPMScheduler"]),
        (DDIMScheduler, scheduler_config.DEFAULTS["DDIMScheduler"]),
    ):
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        there = json.loads(json.dumps({parameter.name: parameter.default for parameter in parameters}))
        assert there == known, {name: (there.get(name), known.get(name)) for name in there.keys() ^ known.keys()}
        print(f"{cls.__name__}: {len(there)} fields, all known, with their defaults")


def shapes_of_celebahq() -> None:
    """The names and shapes of the 256-pixel network, without its numbers."""
    import torch  # pyright: ignore[reportMissingImports]
    from diffusers import UNet2DModel  # pyright: ignore[reportMissingImports]

    from ddpm_jax.interop.names import diffusers_array, diffusers_name, paths

    with torch.device("meta"):
        there = {name: tuple(value.shape) for name, value in UNet2DModel(**CELEBAHQ).state_dict().items()}
    net, image_shape = unet_config.read_config(CELEBAHQ, "config.json")
    found = paths(unet_config.parameter_shapes(net, image_shape))
    here = {
        diffusers_name(path, 6): diffusers_array(path, np.broadcast_to(np.float32(0), leaf.shape)).shape
        for path, leaf in found
    }
    assert here == there
    count = sum(int(np.prod(shape)) for shape in here.values())
    print(f"google/ddpm-celebahq-256: {len(here)} arrays of the same names and shapes, {count:,} parameters")


def write_tiny() -> None:
    """A small pipeline for the tests, with what diffusers makes of it."""
    folder = REFERENCE / "diffusers"
    shutil.rmtree(folder, ignore_errors=True)
    pipeline = save(folder, TINY, TINY_SCHEDULER)
    model = exchange.read(folder)
    outputs = theirs(pipeline.unet, *inputs(model.net, model.image_shape))
    drawn = their_run(pipeline, noises(20, (2, 8, 8, 1)))
    np.savez_compressed(REFERENCE / "diffusers.npz", outputs=outputs, drawn=drawn)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    difference = np.abs(ours(model, *inputs(model.net, model.image_shape)) - outputs).max()
    run = np.abs(our_run(model, noises(20, (2, 8, 8, 1))) - drawn).max()
    print(f"wrote {folder} ({size / 1024:.0f} KB): outputs {difference:.1e}, a run of 20 steps {run:.1e} from ours")


def main() -> None:
    """All comparisons."""
    import torch  # pyright: ignore[reportMissingImports]
    from diffusers.utils import logging  # pyright: ignore[reportMissingImports]

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)  # of networks this small more threads only wait for one another
    fields()
    shapes_of_celebahq()
    with tempfile.TemporaryDirectory() as temporary:
        for index, (name, case) in enumerate(CASES.items()):
            print(f"{name}: {there_and_back(Path(temporary) / str(index), *case)}", flush=True)
            shutil.rmtree(Path(temporary) / str(index))
        runs(Path(temporary))
    write_tiny()


if __name__ == "__main__":
    main()
