"""Handwritten digits, 8x8: the whole path in minutes on a laptop's CPU.

    python experiments/digits.py

Trains for one to two minutes on 2 CPU cores and ends with a picture, runs/digits/samples/00003200.png.
"""

from ddpm_jax.cli.main import launch
from ddpm_jax.data import Digits
from ddpm_jax.diffusion.schedule import Cosine
from ddpm_jax.diffusion.targets import V
from ddpm_jax.nets.unet import UNet
from ddpm_jax.sampling import Ancestral
from ddpm_jax.training.average import Ema
from ddpm_jax.training.experiment import Experiment
from ddpm_jax.training.optimizer import Adam

experiment = Experiment(
    name="digits",
    data=Digits(split="train"),
    # Two levels, 8x8 and 4x4; small batches and many steps learn most in a minute of CPU.
    net=UNet(
        channels=24,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(),
        dropout=0.0,
        num_classes=10,
        label_dropout=0.1,  # so that it can be guided
        norm_groups=8,
    ),
    schedule=Cosine(num_steps=1000),
    target=V(),
    optimizer=Adam(learning_rate=2e-3, warmup_steps=100, decay="cosine"),
    ema=Ema(decay=0.995, warmup=False),
    sampler=Ancestral(num_steps=100),
    batch_size=16,
    num_steps=3200,
    log_every=200,
    checkpoint_every=800,
    sample_every=3200,
    num_samples=100,
)

if __name__ == "__main__":
    launch(experiment)
