"""LSUN Church, Cat and Bedroom, 256x256: the recipes of Ho et al. 2020 (arXiv 2006.11239), number by number.

    python experiments/lsun.py --data.path FOLDER                                               # Church
    python experiments/lsun.py --name lsun-cat --data.path FOLDER --num-steps 1800000           # Cat
    python experiments/lsun.py --name lsun-bedroom --data.path FOLDER --num-steps 2400000 --no-flip

FOLDER holds the images as files.  Sources: appendix B of the paper, and `scripts/run_lsun.py` of the code
published with it.  The paper reports an FID of 7.89 for Church, 19.75 for Cat and 6.36 for Bedroom (tables 3
and appendix), at 2.2 training steps a second on a TPU v3-8.
"""

from ddpm_jax.cli.main import launch
from ddpm_jax.data import Folder
from ddpm_jax.diffusion.objective import SquaredError
from ddpm_jax.diffusion.schedule import Linear
from ddpm_jax.diffusion.targets import Eps
from ddpm_jax.diffusion.variance import FixedSmall
from ddpm_jax.diffusion.weighting import Simple
from ddpm_jax.nets.unet import UNet
from ddpm_jax.sampling import Ancestral
from ddpm_jax.training.average import Ema
from ddpm_jax.training.experiment import Experiment
from ddpm_jax.training.optimizer import Adam

experiment = Experiment(
    name="lsun-church",
    data=Folder("lsun_church", size=256, channels=3),
    # Appendix B: six levels from 256x256 to 8x8, attention at 16x16; 113.7M parameters.
    net=UNet(
        channels=128, channel_multipliers=(1, 1, 2, 2, 4, 4), num_res_blocks=2, attention_resolutions=(16,), dropout=0.0
    ),
    schedule=Linear(num_steps=1000, beta_start=1e-4, beta_end=0.02),  # section 4
    target=Eps(),
    objective=SquaredError(weighting=Simple()),
    optimizer=Adam(learning_rate=2e-5, warmup_steps=5000, clip_norm=1.0),  # appendix B; warm-up, clip: the code
    ema=Ema(decay=0.9999, warmup=False),  # appendix B
    variance=FixedSmall(),  # the code
    sampler=Ancestral(),
    flip=True,  # appendix B: for all data sets except Bedroom
    batch_size=64,  # appendix B
    num_steps=1_200_000,  # appendix B
)

if __name__ == "__main__":
    launch(experiment)
