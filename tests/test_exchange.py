"""The exchange with diffusers: what it wrote is read, what we write is read again, what cannot be said is refused."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import exchange_reference as exchange
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from helpers import SCHEDULES, fails

from ddpm_jax import load_run
from ddpm_jax.cli import main
from ddpm_jax.data import Npz
from ddpm_jax.diffusion.clipping import Clip, DynamicThreshold, NoClipping
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.schedule import Betas, Cosine, Linear, ScaledLinear, ZeroTerminal
from ddpm_jax.diffusion.targets import Eps, Mean, Score, V, X
from ddpm_jax.diffusion.variance import FixedLarge, FixedSmall, LearnedRange
from ddpm_jax.errors import RunError
from ddpm_jax.evaluation.evaluate import Evaluation, evaluate
from ddpm_jax.interop import diffusers, folder, scheduler_config, unet_config
from ddpm_jax.interop.card import _without_places, card_text, describe, evaluations
from ddpm_jax.interop.names import paths
from ddpm_jax.interop.runs import export_run, import_run
from ddpm_jax.nets.unet import UNet
from ddpm_jax.run import Run
from ddpm_jax.sampling import Ancestral, Ddim, Given, Leading, Linspace
from ddpm_jax.storage import specs
from ddpm_jax.storage.checkpoint import Checkpoints
from ddpm_jax.training.average import PowerEma
from ddpm_jax.training.experiment import Experiment
from ddpm_jax.training.loop import train
from ddpm_jax.training.optimizer import Adam
from ddpm_jax.training.resume import check_resumable, start_state

REFERENCE = Path(__file__).parent / "reference"
THEIRS = REFERENCE / "diffusers"
CONFIG = json.loads((THEIRS / "unet" / "config.json").read_text())
SCHEDULER = json.loads((THEIRS / "scheduler" / "scheduler_config.json").read_text())
BASE = UNet(channels=8, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,), norm_groups=4)
SHAPE = (8, 8, 3)
NETS = {
    "published": (UNet(), (32, 32, 3)),
    "heads": (dataclasses.replace(BASE, num_heads=4), SHAPE),
    "channels of heads": (dataclasses.replace(BASE, attention_resolutions=(8, 4), head_channels=4), SHAPE),
    "classes": (dataclasses.replace(BASE, num_classes=10, out_multiplier=2), (8, 16, 1)),
    "adaptive": (dataclasses.replace(BASE, adaptive_norm=True, middle_attention="plain", pad_both_sides=True), SHAPE),
    "adaptive, normalised": (dataclasses.replace(BASE, adaptive_norm=True, norm_epsilon=1e-5, dropout=0.0), SHAPE),
    "no attention": (dataclasses.replace(BASE, attention_resolutions=(), middle_attention="none"), SHAPE),
    "embedding": (dataclasses.replace(BASE, cos_first=True, frequency_shift=0.0), SHAPE),
    "small groups": (dataclasses.replace(BASE, norm_groups=8, min_group_size=1), SHAPE),
}


def parts_of(schedule=Linear(), target=Eps(), variance=FixedSmall(), clip=Clip(), sampler=Ancestral()):
    """The parts of a model but its network, by name."""
    return {"schedule": schedule, "target": target, "variance": variance, "clip": clip, "sampler": sampler}


def read_parts(model):
    return {name: getattr(model, name) for name in parts_of()}


def written_config(parts, report):
    given = {name: value for name, value in parts.items() if name != "sampler"}
    return scheduler_config.write_config(**given, grid=parts["sampler"].grid, report=report)


def model_of(net: UNet, shape=SHAPE, parts=None) -> diffusers.Model:
    """A model with random weights; without compiling anything."""
    random = np.random.default_rng(0)
    shapes = unet_config.parameter_shapes(net, shape)
    params = jax.tree.map(lambda leaf: random.standard_normal(leaf.shape, np.float32), shapes)
    variance = LearnedRange() if net.out_multiplier == 2 else FixedSmall()
    return diffusers.Model(net, params, shape, **(parts or parts_of(variance=variance)))


@pytest.fixture(scope="module")
def model() -> diffusers.Model:
    """The pipeline that diffusers saved."""
    return diffusers.read(THEIRS)


@pytest.fixture
def copied(tmp_path) -> Path:
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(THEIRS, tmp_path / "theirs"))


def change(file: Path, **fields) -> None:
    """Change fields of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


# What diffusers wrote.


def test_the_outputs_are_those_of_diffusers(model):
    with np.load(REFERENCE / "diffusers.npz") as stored:
        expected = stored["outputs"]
    assert expected.std() > 0.1
    given = exchange.inputs(model.net, model.image_shape)
    np.testing.assert_allclose(exchange.ours(model, *given), expected, rtol=0, atol=1e-4)


def test_a_whole_run_with_the_same_noises_is_that_of_diffusers(model):
    with np.load(REFERENCE / "diffusers.npz") as stored:
        expected = stored["drawn"]
    drawn = exchange.our_run(model, exchange.noises(20, expected.shape))
    np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-3)


def test_what_its_configs_say(model):
    assert model.net == UNet(
        channels=4,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        num_heads=2,
        norm_groups=2,
        norm_epsilon=1e-5,
        frequency_shift=0.0,
        cos_first=True,
        pad_both_sides=True,
    )
    assert model.image_shape == (8, 8, 1)
    assert read_parts(model) == parts_of(Cosine(20), Eps(), FixedLarge(), Clip(), Ancestral(grid=Leading()))


def test_the_published_configs_are_the_published_networks():
    assert unet_config.read_config(exchange.CIFAR10, "") == (UNet(dropout=0.0), (32, 32, 3))


@pytest.mark.slow
def test_the_published_config_of_256_pixels():
    net, shape = unet_config.read_config(exchange.CELEBAHQ, "")
    assert (net, shape) == (UNet(channel_multipliers=(1, 1, 2, 2, 4, 4), dropout=0.0), (256, 256, 3))
    assert sum(leaf.size for _, leaf in paths(unet_config.parameter_shapes(net, shape))) == 113_673_219


def test_a_network_alone_gets_the_default_scheduler(copied):
    lines: list[str] = []
    found = diffusers.read((copied / "unet").rename(copied.parent / "alone"), report=lines.append)
    assert read_parts(found) == parts_of(sampler=Ancestral(grid=Leading()))
    assert "has no scheduler_config.json; using the defaults" in lines[0]


OF_THE_AVERAGE = {
    "decay": 0.9999,
    "min_decay": 0.0,
    "optimization_step": 500,
    "update_after_step": 0,
    "use_ema_warmup": True,
    "inv_gamma": 1.0,
    "power": 0.75,
}


@pytest.mark.parametrize("fields", [OF_THE_AVERAGE, {"decay": 0.99, "optimization_step": 3, "collected_params": None}])
def test_the_average_of_a_training_script_of_diffusers(copied, model, fields):
    """RUN/checkpoint-500/unet_ema, with the scheduler that RUN was saved with at its end."""
    checkpoint = copied / "checkpoint-500"
    shutil.copytree(copied / "unet", checkpoint / "unet_ema")
    shutil.move(copied / "unet", checkpoint / "unet")
    change(checkpoint / "unet_ema" / "config.json", **fields)
    scheduler = copied / "scheduler" / "scheduler_config.json"
    lines: list[str] = []
    assert exchange.same(diffusers.read(checkpoint / "unet_ema", report=lines.append), model)
    assert lines == [f"{checkpoint}/unet_ema has no scheduler_config.json; using {scheduler}"]
    lines.clear()
    assert exchange.same(diffusers.read(checkpoint, report=lines.append), model)
    assert lines[0] == (
        f"{checkpoint} also has an average of the weights, which is not read; to read it, import {checkpoint}/unet_ema"
    )


def test_a_scheduler_beside_a_network_that_cannot_be_read_is_not_taken(copied):
    change(copied / "scheduler" / "scheduler_config.json", _class_name="PNDMScheduler")
    lines: list[str] = []
    found = diffusers.read(copied / "unet", report=lines.append)
    assert read_parts(found) == parts_of(sampler=Ancestral(grid=Leading()))
    assert "using the defaults" in lines[0]


def test_the_first_versions_of_a_scheduler_have_other_names():
    first = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "trained_betas": None}
    first |= {"timestep_values": None, "clip_sample": True, "tensor_format": "pt"}
    for steps in (1000, 200):
        ddpm = {"_class_name": "DDPMScheduler", "timesteps": steps, "variance_type": "fixed_large", **first}
        new = {"num_train_timesteps": steps, "variance_type": "fixed_large"}
        assert scheduler_config.read_config(ddpm, "") == scheduler_config.read_config(new, "")
        assert len(scheduler_config.read_config(ddpm, "")["schedule"].betas()) == steps
        ddim = {"_class_name": "DDIMScheduler", "num_train_timesteps": steps, "timesteps": steps, **first}
        assert scheduler_config.read_config(ddim, "")["sampler"] == Ddim(50, Leading())
    for fields, message in (
        ({"timesteps": 100, "num_train_timesteps": 50}, "timesteps is 100; expected 50, that of num_train_timesteps"),
        ({"timestep_values": [1, 2]}, r"timestep_values is \[1, 2\]; expected None"),
        ({"timesteps": "many"}, "num_train_timesteps is 'many'; expected a whole number"),
    ):
        with pytest.raises(ValueError, match=f"s: {message}"):
            scheduler_config.read_config({**first, **fields}, "s")


@pytest.mark.parametrize("kind", list(scheduler_config.DEFAULTS))
def test_fields_that_another_scheduler_left_are_without_effect(kind):
    """DDPMScheduler.from_config(config of another) keeps them."""
    others = dict.fromkeys(scheduler_config.OF_OTHERS - scheduler_config.DEFAULTS[kind].keys(), "any")
    assert len(others) > 30
    base = {"_class_name": kind}
    assert scheduler_config.read_config({**base, **others}, "") == scheduler_config.read_config(base, "")


def test_old_folders_have_everything_at_their_root_and_other_names(copied, model):
    state = safetensors.numpy.load_file(copied / "unet" / "diffusion_pytorch_model.safetensors")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, name in old.items():
        state = {key.replace(f".{new}.", f".{name}."): value for key, value in state.items()}
    (copied / "scheduler" / "scheduler_config.json").rename(copied / "scheduler_config.json")
    (copied / "unet" / "config.json").rename(copied / "config.json")
    shutil.rmtree(copied / "unet")
    safetensors.numpy.save_file(state, copied / "diffusion_pytorch_model.safetensors")
    assert exchange.same(diffusers.read(copied), model)


def test_weights_in_pieces(copied, model):
    unet = copied / "unet"
    whole = unet / "diffusion_pytorch_model.safetensors"
    state = safetensors.numpy.load_file(whole)
    weight_map = {name: f"{whole.stem}-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(state)}
    for piece in set(weight_map.values()):
        safetensors.numpy.save_file({name: state[name] for name in state if weight_map[name] == piece}, unet / piece)
    whole.unlink()
    (unet / f"{whole.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert exchange.same(diffusers.read(copied), model)
    (unet / weight_map["conv_in.weight"]).unlink()
    with pytest.raises(FileNotFoundError, match=r"-of-00002.safetensors is missing"):
        diffusers.read(copied)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_weights_of_another_precision_become_float32(copied, model, dtype):
    file = copied / "unet" / "diffusion_pytorch_model.safetensors"
    state = {name: value.astype(dtype) for name, value in safetensors.numpy.load_file(file).items()}
    file.unlink()
    safetensors.numpy.save_file(state, file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"it holds diffusion_pytorch_model.fp16.safetensors: see --variant"):
        diffusers.read(copied)
    params = diffusers.read(copied, variant="fp16").params
    for (_, found), (_, exact) in zip(paths(params), paths(model.params), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, exact.astype(dtype).astype(np.float32))


# There and back.


@pytest.mark.parametrize("name", NETS)
def test_a_network_written_and_read_is_the_same(name):
    net, shape = NETS[name]
    config = json.loads(json.dumps(unet_config.write_config(net, shape)))
    assert unet_config.read_config(config, "config.json") == (net, shape)


@pytest.mark.parametrize("name", ["channels of heads", "classes", "no attention"])
def test_weights_written_and_read_are_the_same_bit_by_bit(name, tmp_path):
    written = model_of(*NETS[name])
    diffusers.write(tmp_path / "there", written)
    assert exchange.same(diffusers.read(tmp_path / "there"), written)


def test_a_null_label_is_one_class_more(tmp_path):
    written = model_of(dataclasses.replace(BASE, num_classes=10, label_dropout=0.1))
    diffusers.write(tmp_path / "there", written)
    assert json.loads((tmp_path / "there/unet/config.json").read_text())["num_class_embeds"] == 11
    assert diffusers.read(tmp_path / "there").net.num_classes == 11
    assert exchange.same(diffusers.read(tmp_path / "there", label_dropout=0.1), written)


@pytest.mark.parametrize(
    "parts",
    [
        *(parts_of(schedule=schedule) for schedule in SCHEDULES.values()),
        parts_of(schedule=ScaledLinear(10, 1e-3, 0.3)),
        parts_of(target=X(), variance=FixedLarge(), clip=NoClipping()),
        parts_of(target=V(), variance=LearnedRange(), clip=DynamicThreshold(0.9)),
        parts_of(clip=DynamicThreshold(0.99, maximum=3.0), sampler=Ancestral(grid=Leading(offset=1))),
        parts_of(clip=Clip(-2.0, 2.0), sampler=Ancestral(grid=Linspace())),
        parts_of(schedule=ZeroTerminal(Cosine(20)), target=V()),
        parts_of(schedule=ZeroTerminal(Linear(20)), target=X()),
    ],
    ids=lambda parts: str(list(map(repr, parts.values())))[:120],
)
def test_the_mathematics_written_and_read_is_the_same(parts):
    config = json.loads(json.dumps(written_config(parts, pytest.fail)))
    found = scheduler_config.read_config(config, "scheduler_config.json")
    np.testing.assert_array_equal(found["schedule"].betas(), parts["schedule"].betas())
    given = parts["schedule"]
    if config["trained_betas"] is None:
        form = given
    elif isinstance(given, ZeroTerminal):
        form = ZeroTerminal(Betas(given.of.betas()))
    else:
        form = Betas(given.betas())
    assert found == {**parts, "schedule": form}


def test_a_grid_that_diffusers_lacks_is_told_of():
    lines: list[str] = []
    config = written_config(parts_of(sampler=Ddim(None, Given((5, 2)))), lines.append)
    assert config["timestep_spacing"] == "trailing"
    assert "the sampler's grid is Given(timesteps=(5, 2)), which diffusers does not have" in lines[0]


@pytest.mark.parametrize(
    ("fields", "spec"),
    [
        ({"beta_schedule": "linear"}, Linear()),
        ({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, ScaledLinear()),
        ({"beta_schedule": "squaredcos_cap_v2"}, Cosine()),
        ({"trained_betas": [0.1, 0.2, 0.4], "num_train_timesteps": 3}, Betas((0.1, 0.2, 0.4))),
    ],
)
@pytest.mark.parametrize(("prediction", "target"), [("sample", X()), ("v_prediction", V())])
def test_zero_terminal_snr_is_that_of_the_schedule(fields, spec, prediction, target):
    config = {**fields, "prediction_type": prediction, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    found = scheduler_config.read_config(config, "")
    assert found == parts_of(schedule=ZeroTerminal(spec), target=target)
    process = found["schedule"].build()
    assert float(process.signal(process.last)) == 0.0
    np.testing.assert_allclose(process.signal(1), spec.build().signal(1), rtol=1e-6)
    Denoiser(lambda z_t, t: z_t, process, target=target)
    assert scheduler_config.read_config(written_config(found, pytest.fail), "") == found


@pytest.mark.parametrize(
    "fields", [{"rescale_betas_zero_snr": True}, {"trained_betas": [0.1, 0.2, 1.0], "num_train_timesteps": 3}]
)
def test_zero_terminal_snr_does_not_go_with_the_noise_as_target(fields):
    message = (
        r"^s.json: prediction_type is 'epsilon'; expected 'sample' or 'v_prediction', as the last beta is 1[^\n]*$"
    )
    with pytest.raises(ValueError, match=message):
        scheduler_config.read_config(fields, "s.json")
    assert scheduler_config.read_config({**fields, "predict_epsilon": False}, "s.json")["target"] == X()
    with pytest.raises(ValueError, match=r"target is Eps\(\), .* expected one of X\(\), V\(\)"):
        written_config(parts_of(schedule=ZeroTerminal(Linear())), pytest.fail)


def test_ddim_is_read_with_the_steps_of_its_pipeline():
    found = scheduler_config.read_config({"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"}, "")
    assert found == parts_of(sampler=Ddim(num_steps=50))


# Refusals.


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("_class_name", "UNet2DConditionModel", "'UNet2DModel'"),
        ("center_input_sample", True, "False"),
        ("time_embedding_type", "fourier", "'positional'"),
        ("time_embedding_dim", 64, "None or 16"),
        ("mid_block_type", None, "'UNetMidBlock2D'"),
        ("mid_block_scale_factor", 1.4, "1"),
        ("downsample_type", "resnet", "'conv'"),
        ("upsample_type", "resnet", "'conv'"),
        ("act_fn", "relu", "'silu' or 'swish'"),
        ("class_embed_type", "timestep", "None"),
        ("down_block_types", ["DownBlock2D", "SkipDownBlock2D"], "2 of 'DownBlock2D' or 'AttnDownBlock2D'"),
        ("up_block_types", ["UpBlock2D", "UpBlock2D"], "['AttnUpBlock2D', 'UpBlock2D']"),
        ("block_out_channels", [8, 12], "multiples of the first, 8"),
        ("sample_size", None, "a whole number or a pair of them"),
        ("out_channels", 3, "1 or 2"),
        ("layers_per_block", 1.5, "a whole number, at least 1"),
        ("downsample_padding", 2, "0 or 1"),
        ("attention_head_dim", 3, "a divisor of the channels of attention, 8, or null"),
        ("attn_norm_num_groups", 4, "None or 2"),
        ("norm_num_groups", 3, "a divisor of the channels that are normalised, 4, 8, 12, 16"),
        ("norm_eps", "tiny", "a number"),
        ("resnet_time_scale_shift", "spatial", "'default' or 'scale_shift'"),
        ("num_class_embeds", 1, "a whole number, at least 2"),
        ("rope_theta", 10_000, "no such field"),
    ],
)
def test_a_field_of_the_network_that_cannot_be_said(field, value, expected):
    message = re.escape(f"unet/config.json: {field} is {value!r}; expected {expected}")
    with pytest.raises(ValueError, match=f"^{message}"):
        unet_config.read_config({**CONFIG, field: value}, "unet/config.json")


def test_every_field_of_the_network_is_looked_at():
    """A value that no field takes is refused, whichever field it is."""
    silent_fields = {"num_train_timesteps"}  # of a time_embedding_type that is refused
    for field in unet_config.DEFAULTS.keys() - silent_fields:
        with pytest.raises(ValueError, match=f"^unet/config.json: {field} is .*; expected"):
            unet_config.read_config({**CONFIG, field: "nonsense"}, "unet/config.json")


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("_class_name", "PNDMScheduler", "'DDPMScheduler' or 'DDIMScheduler'"),
        ("beta_schedule", "laplace", "'linear' or 'scaled_linear' or 'squaredcos_cap_v2' or 'sigmoid'"),
        ("trained_betas", [0.1], "null or a list of 20 numbers"),
        ("variance_type", "learned", "'fixed_small' or"),
        ("prediction_type", "flow", "'epsilon' or 'sample' or 'v_prediction'"),
        ("rescale_betas_zero_snr", 1, "true or false"),
        ("timestep_spacing", "random", "'leading' or"),
        ("soft_edges", False, "no such field"),
    ],
)
def test_a_field_of_the_scheduler_that_cannot_be_said(field, value, expected):
    message = re.escape(f"scheduler_config.json: {field} is {value!r}; expected {expected}")
    with pytest.raises(ValueError, match=f"^{message}"):
        scheduler_config.read_config({**SCHEDULER, field: value}, "scheduler_config.json")


def test_every_field_of_the_scheduler_is_looked_at():
    for kind, defaults in scheduler_config.DEFAULTS.items():
        base = {"_class_name": kind, "thresholding": True}
        for field in defaults.keys() - {"beta_start", "beta_end", "dynamic_thresholding_ratio"}:
            with pytest.raises(ValueError, match=rf"^s.json: {field} is .*; expected|{field}"):
                scheduler_config.read_config({**base, field: "nonsense"}, "s.json")
        for field in ("beta_start", "beta_end"):
            with pytest.raises(ValueError, match=f"s.json: {field} is 'nonsense'; expected a number"):
                scheduler_config.read_config({"_class_name": kind, field: "nonsense"}, "s.json")


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            UNet(channels=8, channel_multipliers=(1,), attention_resolutions=()),
            "net.norm_groups is 32; expected one",
        ),
        (
            dataclasses.replace(BASE, channel_multipliers=(2, 4)),
            r"net.channel_multipliers is \(2, 4\); expected 1 at the",
        ),
        (dataclasses.replace(BASE, attention_resolutions=(8, 4), num_heads=2), "net.num_heads is 2; expected 1"),
        (dataclasses.replace(BASE, middle_attention="plain"), "net.middle_attention is 'plain'; expected 'normalised'"),
    ],
    ids=["groups", "first level", "heads", "middle"],
)
def test_a_network_that_diffusers_does_not_have(net, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        diffusers.write(tmp_path / "there", model_of(net))
    assert not list(tmp_path.iterdir())


def test_a_network_of_another_class_is_refused():
    later = dataclasses.make_dataclass("UNet", [("patch_size", int, 1)], bases=(UNet,), frozen=True)
    with pytest.raises(ValueError, match="net is 'UNet'; expected UNet, the U-Net"):
        unet_config.write_config(later(), (32, 32, 3))


# Another value of each field of a network that says what it computes.
CHANGES = {
    "channels": 16,
    "channel_multipliers": (1, 4),
    "num_res_blocks": 2,
    "attention_resolutions": (8, 4),
    "dropout": 0.5,
    "num_heads": 2,
    "head_channels": 4,
    "num_classes": 3,
    "label_dropout": 0.1,
    "out_multiplier": 2,
    "norm_groups": 2,
    "min_group_size": 8,
    "norm_epsilon": 1e-3,
    "adaptive_norm": True,
    "middle_attention": "none",
    "frequency_shift": 0.5,
    "cos_first": True,
    "pad_both_sides": True,
    "patch_size": 2,
}


REFUSED = {"patch_size": "patch_size", "min_group_size": "norm_groups"}


@pytest.mark.slow
def test_every_field_of_our_network_is_written_or_refused():
    assert CHANGES.keys() == {field.name for field in dataclasses.fields(UNet)} - {"dtype", "remat"}
    plain = dataclasses.replace(BASE, num_classes=10)
    config = unet_config.write_config(plain, SHAPE)
    for field, value in CHANGES.items():
        changed = dataclasses.replace(plain, **{field: value})
        if field in REFUSED:
            with pytest.raises(ValueError, match=f"^net.{REFUSED[field]} is "):
                unet_config.write_config(changed, SHAPE)
        else:
            assert unet_config.write_config(changed, SHAPE) != config, field


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (parts_of(target=Mean()), r"target is Mean\(\); expected Eps\(\), X\(\) or V\(\)"),
        (parts_of(target=Score()), "target is Score"),
        (parts_of(clip=Clip(0.0, 1.0)), r"clip is Clip\(low=0.0, high=1.0\); expected Clip\(-r, r\)"),
        (parts_of(variance=LearnedRange()), "net.out_multiplier is 1; expected 2"),
    ],
    ids=["mean", "score", "clip", "variance"],
)
def test_mathematics_that_diffusers_does_not_have(parts, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        diffusers.write(tmp_path / "there", model_of(BASE, parts=parts))
    assert not list(tmp_path.iterdir())


def test_pickles_are_never_read(copied):
    (copied / "unet" / "diffusion_pytorch_model.safetensors").rename(copied / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"as a pickle, diffusion_pytorch_model.bin, which can run any code"):
        diffusers.read(copied)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state.pop("conv_in.bias"), "lacks conv_in.bias; expected"),
        (lambda state: state.update(extra=np.zeros(3)), "needs, extra; expected"),
        (
            lambda state: state.update({"conv_in.bias": np.zeros(3)}),
            r"shape of conv_in.bias is \(3,\); expected \(4,\)",
        ),
        (lambda state: state.update({"conv_in.bias": np.full(4, np.nan)}), "numbers that are not finite"),
    ],
    ids=["missing", "more", "shape", "nan"],
)
def test_weights_that_are_not_those_of_the_config(copied, spoil, message):
    file = copied / "unet" / "diffusion_pytorch_model.safetensors"
    state = dict(safetensors.numpy.load_file(file))
    spoil(state)
    safetensors.numpy.save_file(state, file)
    with pytest.raises(ValueError, match=message):
        diffusers.read(copied)


def test_damaged_files(copied, tmp_path):
    file = copied / "unet" / "diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    for broken in (content[:-8], content[:5], b"", b"\xff" * 100):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match="cannot be read as safetensors"):
            diffusers.read(copied)
    file.unlink()
    index = {"weight_map": {"conv_in.bias": "../../elsewhere.safetensors"}}
    (copied / "unet" / f"{file.name}.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"expected names of .safetensors files beside it"):
        diffusers.read(copied)
    (copied / "unet" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not JSON"):
        diffusers.read(copied)
    with pytest.raises(FileNotFoundError, match="hf download google/ddpm-cifar10-32"):
        diffusers.read("google/ddpm-cifar10-32")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"vqvae": ["diffusers", "VQModel"]}, "vqvae is 'VQModel'; expected no such part"),
        ({"unet": ["diffusers", "UNet2DConditionModel"]}, "unet is 'UNet2DConditionModel'; expected 'UNet2DModel'"),
    ],
    ids=["latent", "conditional"],
)
def test_other_pipelines(copied, parts, message):
    change(copied / "model_index.json", **parts)
    with pytest.raises(ValueError, match=message):
        diffusers.read(copied)


def test_a_variance_that_the_network_does_not_give(copied):
    change(copied / "scheduler" / "scheduler_config.json", variance_type="learned_range")
    with pytest.raises(
        ValueError, match="variance_type is 'learned_range'; expected a fixed one, as out_channels is 1"
    ):
        diffusers.read(copied)


# Runs.


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> Path:
    """A run made by the command."""
    output = tmp_path_factory.mktemp("imported") / "run"
    main.main(["import", str(THEIRS), "--output", str(output)])
    return output


@pytest.fixture
def images(tmp_path) -> Npz:
    """Random images of the right shape."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels)
    return Npz(str(tmp_path / "images.npz"))


def test_an_imported_run_is_read_like_any_other(imported, model, one):
    run = load_run(imported, one)
    assert (run.step, run.image_shape, run.experiment.net) == (0, (8, 8, 1), model.net)
    assert run.experiment.schedule == model.schedule
    jax.tree.map(np.testing.assert_array_equal, run.params, model.params)


def tuned(imported: Path, images: Npz) -> Experiment:
    """An experiment that goes on from an imported run, and has in common with it what its weights know."""
    there = specs.load(imported / "experiment.json")
    return dataclasses.replace(
        there,
        data=images,
        net=dataclasses.replace(there.net, dropout=0.0),
        optimizer=Adam(learning_rate=1e-6, warmup_steps=0),
        ema=PowerEma(snapshot_every=100),
        batch_size=8,
        num_steps=2,
    )


def test_what_its_weights_know_stays_and_all_else_may_change(imported, images):
    new = tuned(imported, images)
    check_resumable(new, imported)
    for changes, line in (
        ({"schedule": Linear()}, "schedule: Cosine there, Linear here"),
        ({"target": V()}, "target: Eps there, V here"),
        ({"net": dataclasses.replace(new.net, cos_first=False)}, "net.cos_first: true there, false here"),
    ):
        with pytest.raises(RunError, match=line):
            check_resumable(dataclasses.replace(new, **changes), imported)


def test_training_starts_at_its_weights(imported, images, model, one):
    new = tuned(imported, images)
    checkpoints = Checkpoints(imported / "checkpoints")
    found, _ = start_state(new.plan(one), checkpoints, pytest.fail)
    checkpoints.close()
    assert int(found.step) == 0
    assert len(found.ema_params) == 2
    for tree in (found.params, *found.ema_params):
        jax.tree.map(np.testing.assert_array_equal, tree, model.params)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(found.opt_state))


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_it_samples_and_goes_on_training(imported, images, model, one, tmp_path):
    assert load_run(imported, one).sample(jax.random.key(0), 2, sampler=Ddim(2)).shape == (2, 8, 8, 1)
    run, new = Path(shutil.copytree(imported, tmp_path / "run")), tuned(imported, images)
    train(new, run, one)
    trained = load_run(run, one)
    assert trained.step == 2
    differences = jax.tree.map(lambda a, b: np.abs(a - b).max(), trained.params, model.params)
    assert 0 < max(jax.tree.leaves(differences)) < 1e-5  # two steps of 1e-6
    with pytest.raises(RunError, match=r"optimizer.learning_rate"):  # from now on nothing may change
        train(dataclasses.replace(new, optimizer=Adam()), run, one)
    train(dataclasses.replace(new, num_steps=3), run, one)
    assert load_run(run, one).step == 3


def test_its_data_are_named_later(imported, images, capsys):
    experiment = specs.load(imported / "experiment.json")
    message = "data.path is None: the network was imported without its data"
    with pytest.raises(FileNotFoundError, match=message):
        experiment.check()
    assert message in fails(capsys, "train", imported / "experiment.json", "--workdir", imported)
    named = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, path=images.path))
    named.check()
    assert len(named.data) == 32
    wrong = dataclasses.replace(experiment.data, image_shape=(16, 16, 1), path=images.path)
    with pytest.raises(ValueError, match=r"images of shape \(8, 8, 1\); the network takes \(16, 16, 1\)"):
        len(wrong)


def test_a_run_exported_is_the_network_that_was_imported(imported, model, tmp_path):
    output = export_run(imported, tmp_path / "there", license="apache-2.0")
    assert exchange.same(diffusers.read(output), model)
    card = (output / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: diffusers\nlicense: apache-2.0\n")
    for said in ("Cosine(num_steps=20)", "FixedLarge()", "imported weights", "num_inference_steps=20", "not evaluated"):
        assert said in card


def test_nothing_is_overwritten_and_what_fails_leaves_nothing(imported, tmp_path, monkeypatch, capsys):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").write_text("precious")
    assert "exists already and is not overwritten" in fails(capsys, "export", imported, taken)
    assert "give another --output" in fails(capsys, "import", THEIRS, "--output", taken)
    assert [path.name for path in taken.iterdir()] == ["file"]

    def full(*_, **__):
        raise OSError("the disk is full")

    monkeypatch.setattr(folder, "write_weights", full)
    assert "the disk is full" in fails(capsys, "export", imported, tmp_path / "new")
    monkeypatch.setattr(specs, "save", full)
    assert "the disk is full" in fails(capsys, "import", THEIRS, "--output", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_while_it_is_written_nothing_is_there(tmp_path):
    (tmp_path / "other").mkdir()
    with folder.appearing(tmp_path / "new", "last", "") as made:
        (made / "file").write_text("half")
        assert not (tmp_path / "new").exists()
        assert made.parent.name.startswith(".")
    assert (tmp_path / "new" / "file").read_text() == "half"
    assert (tmp_path / "new").stat().st_mode == tmp_path.joinpath("other").stat().st_mode


# Cards.


@pytest.mark.slow
def test_the_card_has_the_scores_of_these_weights_and_their_conditions(finished, one, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    run, of = load_run(finished, one), Evaluation(metrics=("bpd",), bound_terms=1)
    report, _ = evaluate(run, tmp_path / "run", None, of)
    other = dataclasses.replace(run, params=jax.tree.map(lambda leaf: leaf + 1, run.params))
    evaluate(other, tmp_path / "run", None, of)
    for name, text in {"b": "{", "c": "[]", "d": '{"metrics": 3}', "e": "{}"}.items():
        (tmp_path / "run" / "evaluations" / name).mkdir()
        (tmp_path / "run" / "evaluations" / name / "report.json").write_text(text)
    assert evaluations(run, tmp_path / "run") == [report]
    text = card_text(run, tmp_path / "run", "mine", None)
    assert f"| bits/dim | {report.scores[0].value:.4g} | ± " in text
    assert "- held out: Digits(split=test), split test: 360 images" in text
    assert "license: unknown" in text
    assert "No licence was given" in text
    assert "were not evaluated" in card_text(run, tmp_path, "mine", None)
    with pytest.raises(ValueError, match="--license is 'do what\\\\nyou want'; expected an identifier"):
        card_text(run, tmp_path, "mine", "do what\nyou want")


def test_a_card_tells_no_private_paths():
    assert describe(Npz("/home/someone/photos.npz")) == "Npz(path='photos.npz')"
    assert _without_places({"data": {"path": ["/home/someone/photos.npz", "mnist"]}}) == {
        "data": {"path": ["photos.npz", "mnist"]}
    }


def test_the_card_of_a_class_conditional_network_draws_with_labels(tiny, one, tmp_path):
    run = Run(tiny, 6, model_of(tiny.net).params, (8, 8, 1), one, 0.9)
    text = card_text(run, tmp_path, "mine", None)
    assert "pipeline.unet(z, t, labels)" in text
    assert "Class 10 stands for no class" in text
    assert "--label-dropout 0.2" in text


def test_import_run_says_what_it_assumed(copied, tmp_path):
    lines: list[str] = []
    experiment = import_run(copied / "unet", tmp_path / "run", report=lines.append, data="images.npz")
    assert experiment.data.path == "images.npz"
    assert len(lines) == 1
