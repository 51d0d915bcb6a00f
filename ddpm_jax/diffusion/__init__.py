r"""What is the mathematics?  The forward process, the denoiser, the bound, the losses, and guidance.

Every function here is pure.  It takes arrays and a time, and a key if it draws random numbers.  None of them
knows a network or a data set: a network enters as `predict(z_t, t)`, inside a `Denoiser`.

```python
import jax
from ddpm_jax import Denoiser, bound, forward, objective, schedule, targets, variance, weighting

process = schedule.Cosine(num_steps=100).build()
model = Denoiser(lambda z_t, t: 0 * z_t, process, target=targets.V(), variance=variance.FixedLarge())

x = jax.random.uniform(jax.random.key(0), (16, 8, 8, 1), minval=-1, maxval=1)
draws = objective.draw(jax.random.key(1), process, x.shape)  # t and eps of each example
z_t = forward.diffuse(process, x, draws.t, draws.eps)
q = forward.posterior(process, z_t, x, draws.t)  # q(z_{t-1} | z_t, x): q.mean, q.std
losses = objective.SquaredError(weighting.MinSnr(5.0))(model, x, draws)  # float32 [16]
b = bound.bound(jax.random.key(2), model, x)  # b.bits_per_dim [16], b.nats [100, 16], b.rate_distortion()
```

## Equations

A process is a pair of functions of time, signal and noise, with a falling signal-to-noise ratio SNR = signal^2 / noise^2.
With eps ~ N(0, I), S = signal^2 + noise^2, s < t and r = SNR_t / SNR_s:

    z_t                 = signal_t x + noise_t eps             the reparameterization         forward.diffuse
    q(z_t | x)          = N( signal_t x,  noise_t^2 I )                                       forward.marginal
    q(z_s | z_t, x)     = N( a z_t + b x,  noise_s^2 (1 - r) I )    the posterior             forward.posterior
                          a = (signal_t / signal_s) (noise_s / noise_t)^2,  b = signal_s (1 - r)     process.step(t, s)
    p(z_s | z_t)        = N( a z_t + b x predicted,  var I )                                  Denoiser.normal
    output              = A_t x + B_t eps                      what the network predicts      targets
    loss                = w_t || output - (A_t x + B_t eps) ||^2 / D                          objective.SquaredError
    -log p(x)          <= prior + sum of a term for each step  minus the ELBO                 bound.bound
    z at the noisy end  ~ N(0, S I)

A chain has times t = 1..T, and z_0 = x.  It keeps S = 1, and adds noise step by step:

    q(z_t | z_{t-1})    = N( sqrt(1 - beta_t) z_{t-1},  beta_t I )                            forward.transition

A continuous process has real times, most often in [0, 1], and one more step from its clean end to clean data.  DDPM, EDM
and rectified flow are instances of a few lines:

| | process | target | times in training | sampler |
|---|---|---|---|---|
| DDPM | `schedule.Linear()`, `Cosine()`, ... | `Eps()`, `V()` | `UniformTimesteps()` | `Ancestral()` |
| VDM | `process.VariancePreserving(13.3, -5)` | `Eps()`, `V()` | `StratifiedTimesteps()` | `Ancestral(250)` |
| EDM | `process.VarianceExploding(0.002, 80)` | `Edm(sigma_data)` | `LogNormalSigma(-1.2, 1.2)` | `Heun(18)` |
| rectified flow | `process.RectifiedFlow()` | `Velocity()` | `LogitNormal()` | `Ddim(50)` |

A process and a target of your own are a dataclass each, in the experiment file:

```python
from dataclasses import dataclass

import jax.numpy as jnp
from ddpm_jax import process, targets


@dataclass(frozen=True)
class Circular(process.Continuous):
    first: float = 0.001  # the clean end
    last: float = 0.999  # the noisy end

    def signal(self, t):
        return jnp.cos(jnp.pi / 2 * t)

    def noise(self, t):
        return jnp.sin(jnp.pi / 2 * t)


@dataclass(frozen=True)
class Difference(targets.Target):  # x - eps
    def pair(self, process, t):
        return jnp.ones_like(t), -jnp.ones_like(t)


other = Denoiser(lambda z_t, t: 0 * z_t, Circular().build(), target=Difference())
same_network = other.on(process.VarianceExploding(0.002, 80.0))  # read at equal SNRs
```

Every sampler, loss and bound takes it, and so does `Experiment(schedule=Circular(), target=Difference())`.

Algorithm 1 of Ho et al. 2020, training, is `objective.draw` followed by an objective and a step of an optimizer
(`ddpm_jax.fit`, `ddpm_jax.train`).  Algorithm 2, sampling, is `ddpm_jax.sampling.sample` with `Ancestral`.

## Notation

The symbols follow *Understanding Deep Learning* (Prince 2023), chapter 18, and Ho et al. 2020.

| symbol | in code | meaning |
|---|---|---|
| x | `x` | data, [batch, height, width, channels] in [-1, 1]; any [batch, ...] is accepted |
| z_t | `z_t` | the latent at time t = 0..T; z_0 = x |
| ε | `eps` | noise, N(0, I) |
| β_t | `beta[t]` | the share of the variance that step t replaces by noise |
| ᾱ_t | `alpha_bar[t]` | prod (1 − β_i), the book's α_t |
| √ᾱ_t, √(1 − ᾱ_t) | `signal(t)`, `noise(t)` | z_t = signal x + noise ε |
| ᾱ_t / (1 − ᾱ_t) | `snr(t)` | the signal-to-noise ratio |
| q(z_t given z_{t−1}), q(z_t given x), q(z_{t−1} given z_t, x) | `forward.transition`, `marginal`, `posterior` | the encoder, and its reverse given x |

The last four rows are for a chain.  Its tables have T + 1 entries.  Index 0 is clean, so t runs from 1 to T, and no index
is shifted by one.

## Modules

| module | names |
|---|---|
| `schedule` | chains: `Linear`, `ScaledLinear`, `Cosine`, `Sigmoid`, `Betas`, `ZeroTerminal`; `build()` gives the process |
| `process` | continuous time: `VariancePreserving`, `VarianceExploding`, `RectifiedFlow`, or `Continuous` for your own |
| `targets` | `Eps`, `X`, `V`, `Score`, `Mean` (of z_{t-1}), `Velocity`, `Edm`; `convert` between any two |
| `variance` | `FixedSmall`, `FixedLarge`, `LearnedRange` |
| `clipping` | `NoClipping` (the default), `Clip`, `DynamicThreshold` |
| `denoiser` | `Denoiser(predict, process, target, variance, clip)`; `on(process)` reads it on another process |
| `objective` | `SquaredError`, `Hybrid`, `FullBound` |
| `weighting` | `Simple`, `Vlb`, `MinSnr`, `P2`, `Weights` |
| `timesteps` | `UniformTimesteps`, `StratifiedTimesteps`, `LossAwareTimesteps`, `LogitNormal`, `LogNormalSigma` |
| `bound` | the ELBO: `term`, `bound` (all terms, or those of K steps), `estimate` (K random terms; in continuous time, of infinitely many steps), `rate_distortion` |
| `likelihood` | `log_likelihood` of the probability flow, with Hutchinson's trace or the exact one, integrated by diffrax |
| `guidance` | `guided` (classifier-free guidance, on an interval of t), `steered` (classifier guidance, by any gradient) |
| `grids` | which times a sampler visits |
| `mixture` | `Mixture`: the exact density, score, denoiser, reverse process and modes of a mixture of Gaussians |

## Clipping

Nothing is clipped unless the denoiser has a `clip`.  The samplers and the bound obey it.  The losses, the likelihood
and the inversion ignore it.  Guidance mixes unclipped outputs, and the result clips as its first denoiser does.
Images that were scaled to [-1, 1] are usually sampled with `clipping.Clip()`.  Data outside [-1, 1] must not be.

## Data with a known truth

`mixture.Mixture` knows p(z_t), its score, E[x | z_t] and q(z_{t-1} | z_t) exactly, so a sampler, a bound or a trained
network can be compared with the truth.  The notes in experiments/notes use it throughout.
"""
