"""MNIST, 28x28, through TensorFlow Datasets: the DDPM recipe at a size for one GPU; a CPU wants --batch-size 32.

    python experiments/mnist.py

Needs the data set prepared once; without a network, from an .npz with the arrays train_images,
train_labels, test_images and test_labels:

    ddpm-jax prepare mnist mnist.npz
"""

from ddpm_jax.cli.main import launch
from ddpm_jax.data import Tfds
from ddpm_jax.diffusion.schedule import Linear
from ddpm_jax.diffusion.targets import Eps
from ddpm_jax.nets.unet import UNet
from ddpm_jax.sampling import Ancestral
from ddpm_jax.training.average import Ema
from ddpm_jax.training.experiment import Experiment
from ddpm_jax.training.optimizer import Adam

experiment = Experiment(
    name="mnist",
    data=Tfds("mnist", split="train"),
    # Three levels: 28, 14 and 7 pixels.
    net=UNet(channels=32, channel_multipliers=(1, 2, 2), num_res_blocks=2, attention_resolutions=(14,), norm_groups=8),
    schedule=Linear(num_steps=1000),
    target=Eps(),
    optimizer=Adam(learning_rate=2e-4, warmup_steps=1000),
    ema=Ema(decay=0.9995, warmup=True),
    sampler=Ancestral(),
    batch_size=128,
    num_steps=50_000,
    checkpoint_every=2500,
    sample_every=5000,
)

if __name__ == "__main__":
    launch(experiment)
