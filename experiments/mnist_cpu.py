"""MNIST, 28x28, in about an hour on 2 CPU cores: the network sees patches of 2x2 pixels.

    python experiments/mnist_cpu.py

Needs the data set prepared once, as experiments/mnist.py says.
"""

from ddpm_jax.cli.main import launch
from ddpm_jax.data import Tfds
from ddpm_jax.diffusion.schedule import Cosine
from ddpm_jax.diffusion.targets import V
from ddpm_jax.nets.unet import UNet
from ddpm_jax.sampling import DpmSolver, Uniform
from ddpm_jax.training.average import Ema
from ddpm_jax.training.experiment import Experiment
from ddpm_jax.training.optimizer import Adam

experiment = Experiment(
    name="mnist_cpu",
    data=Tfds("mnist", split="train", label_key="label"),
    # Two levels, 14 and 7 places wide.
    net=UNet(
        channels=32,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(7,),
        dropout=0.0,
        num_classes=10,
        label_dropout=0.1,
        norm_groups=8,
        patch_size=2,
    ),
    schedule=Cosine(num_steps=1000),
    target=V(),
    optimizer=Adam(learning_rate=1e-3, warmup_steps=200, decay="cosine"),
    ema=Ema(decay=0.999, warmup=True),
    sampler=DpmSolver(num_steps=20, grid=Uniform()),
    batch_size=32,
    num_steps=14_000,
    checkpoint_every=1000,
    sample_every=2000,
    num_samples=100,
)

if __name__ == "__main__":
    launch(experiment)
