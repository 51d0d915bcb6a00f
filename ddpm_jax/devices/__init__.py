"""Where does it run?  Meshes, compilers, clusters and precision: all that depends on JAX's internals or on a backend.

| hardware | commands |
|---|---|
| NVIDIA GPUs | `pip install -e .[cuda13]` (or `cuda12`), then the same commands: all devices of the machine share each batch |
| TPU | `pip install -e .[tpu]`, then the same commands |
| many hosts | the same command on each. SLURM and Open MPI are recognised; elsewhere `--distributed` (Kubernetes, TPU pods), or `--coordinator HOST:PORT --num-processes N --process-index I`. All hosts must be able to write the run folder. See scripts/slurm.sbatch and scripts/tpu_pod.sh |
| many hosts, simulated on one machine | `python scripts/launch_local.py 2 --devices-per-process 4 -- ddpm-jax train experiments/digits.py` |

```python
from ddpm_jax import mesh

devices = mesh.MeshShape(fsdp=1).build()  # all devices; `Experiment(mesh=mesh.MeshShape(...))` builds its own
```

`JAX_NUM_PROCESSES=1` keeps processes apart that were started together.  If one of many processes dies, the others
report it and end with status 1 within a minute; start all again. experiments/cifar10.py, celeba_hq.py and lsun.py are
the recipes of Ho et al. 2020, number by number.

## Models and batches that do not fit

`--dry-run` prints what a device must hold, and how each of these flags changes it:

| flag | effect |
|---|---|
| `--mesh.fsdp 8` | parameters, averages and optimizer state are split over 8 devices; the rest of the mesh holds copies |
| `--accumulate 4` | the batch goes through the network in 4 parts; the gradient is that of the whole batch |
| `--net.remat` | each block is computed again for the backward pass (not on CPUs, whose compiler undoes it) |
| `--net.dtype bfloat16` | the network computes in bfloat16; parameters, losses and the diffusion stay in float32 |

`python scripts/scaling.py experiments/digits.py` compiles the step for 1 to 64 devices and reads the compiled
program:

| devices | state | compiling | a device's part of the state | working memory | communication in a step |
|---|---|---|---|---|---|
| 1 | whole | 11 s | 5.9 MB | 8.9 MB | |
| 8 | copies | 13 s | 5.9 MB | 8.9 MB | 1 all-reduce of the gradient, 1.5 MB |
| 64 | copies | 13 s | 5.9 MB | 8.9 MB | 1 all-reduce of the gradient, 1.5 MB |
| 8 | fsdp 8 | 11 s | 2.6 MB | 8.9 MB | 10 all-gathers (0.95 MB), one for each array that is split, 12 all-reduces |
| 16 | fsdp 16 | 13 s | 2.3 MB | 8.9 MB | the same |
| 16 | 4 copies x fsdp 4 | 13 s | 3.0 MB | 8.9 MB | the same gathers, 3 all-reduces |

The conditions: 16 images on each device, virtual devices of 2 CPU cores.  With T = 100 or 10,000 all numbers stay the
same.  The network is so small that most of its arrays are not worth splitting, and 64 divides none of them.  CPUs
have no reduce-scatter.  The TPU's compiler, for a v5e 2x4 and 256 channels, turns the same step into 23 all-gathers
in bfloat16 and 5 reduce-scatters.

## Precision

Training and `sample` leave the precision of float32 products to the hardware (TF32 on NVIDIA GPUs, bfloat16 on
TPUs).  Bounds, likelihoods, features and everything in an evaluation are computed in full float32, and a report names
the precision.  `ddpm-jax evaluate --precision default` or `jax.default_matmul_precision` change it
(`ddpm_jax.precision`).

## Speed, measured

`pip install -e .[benchmark]`, then `python scripts/benchmark` times training, sampling, data, checkpoints, start-up
and imports beside PyTorch and the `UNet2DModel` of diffusers with the same architecture, in the fastest of its modes
(eager, channels_last, `torch.compile`, on GPUs CUDA graphs).  The sides take turns, each in a process of its own.
Medians, ratios and peak memory go into a JSON file and a chart.  `--growth` shows how time and memory grow with
batch, T, steps, image and width.

![How many times as fast ddpm_jax is beside PyTorch, for training, sampling, data, checkpoints and start-up](scripts/benchmark/cpu.png)

This was one run on 2 shared cores, where the same code varies by a fifth.  The rows below 1 have these bounds:

| row | its bound |
|---|---|
| CIFAR-10 net | the forward pass runs at 96% of the rate of a large matrix product, the step at 62%: half of its time is such products, a tenth copies the patches that XLA's convolutions multiply, a seventh is elementwise, a fourteenth clears pages. In a later run the step's peak was 1.80 GB, that of PyTorch's modes 1.80 to 1.92 |
| DDIM, 256 digits | convolutions of 24 channels: a quarter of the time copies their patches, and products of 24 columns fill vectors of 16 badly |
| start-up | XLA compiles for 7 s, once; a warm start traces the step for 2 s and imports for 1.2 |
| checkpoints | Orbax, and a digest of every array; training continues after a quarter of the time that saving takes |

Compiled programs are kept in `~/.cache/ddpm_jax`, so a second start is faster.
"""
