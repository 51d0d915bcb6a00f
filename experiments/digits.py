"""Handwritten digits, 8x8: the whole path in minutes on a laptop's CPU.

python experiments/digits.py
"""

from ddpm_jax.data import Digits
from ddpm_jax.experiment import Experiment
from ddpm_jax.launch import launch
from ddpm_jax.nets.unet import UNetSpec
from ddpm_jax.sampling import Ddim
from ddpm_jax.schedule import Cosine
from ddpm_jax.targets import V
from ddpm_jax.training.optimizer import Adam, Ema

experiment = Experiment(
    name="digits",
    data=Digits(split="train"),
    net=UNetSpec(channels=32, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,), dropout=0.0),
    schedule=Cosine(num_steps=1000),
    target=V(),
    optimizer=Adam(learning_rate=2e-3, warmup_steps=100, decay="cosine"),
    ema=Ema(decay=0.99),
    sampler=Ddim(num_steps=50),
    batch_size=128,
    num_steps=60,
    log_every=10,
    checkpoint_every=20,
    sample_every=60,
)

if __name__ == "__main__":
    launch(experiment)
