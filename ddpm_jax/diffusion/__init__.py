r"""What is the mathematics?  The forward process, the denoiser, the bound, the losses, and guidance.

Every function here is pure.  It takes arrays and a timestep, and a key if it draws random numbers.  None of them
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

For t = 1..T, with z_0 = x and eps ~ N(0, I):

    q(z_t | z_{t-1})    = N( sqrt(1 - beta_t) z_{t-1},  beta_t I )                            forward.transition
    q(z_t | x)          = N( signal_t x,  noise_t^2 I )                                       forward.marginal
    z_t                 = signal_t x + noise_t eps             the reparameterization         forward.diffuse
    q(z_s | z_t, x)     = N( a z_t + b x,  var I ),  s < t     the posterior                  forward.posterior
    p(z_s | z_t)        = N( a z_t + b x predicted,  var I )                                  Denoiser.normal
    loss                = w_t || output - target(x, eps, t) ||^2 / D                          objective.SquaredError
    -log p(x)          <= prior + sum_{t=1..T} term_t          minus the ELBO                 bound.bound

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

Tables have T + 1 entries.  Index 0 is clean, so t runs from 1 to T, and no index is shifted by one.

## Modules

| module | names |
|---|---|
| `schedule` | `Linear`, `ScaledLinear`, `Cosine`, `Sigmoid`, `Betas`; `build()` gives the process |
| `targets` | `Eps`, `X`, `V`, `Score`, `Mean` (of z_{t-1}); `convert` between any two |
| `variance` | `FixedSmall`, `FixedLarge`, `LearnedRange` |
| `clipping` | `NoClipping` (the default), `Clip`, `DynamicThreshold` |
| `denoiser` | `Denoiser(predict, process, target, variance, clip)` |
| `objective` | `SquaredError`, `Hybrid`, `FullBound` |
| `weighting` | `Simple`, `Vlb`, `MinSnr`, `P2`, `Weights` |
| `timesteps` | `UniformTimesteps`, `StratifiedTimesteps`, `LossAwareTimesteps` |
| `bound` | the ELBO: `term`, `bound` (all terms, or those of a strided chain), `estimate` (K random terms), `rate_distortion` |
| `likelihood` | `log_likelihood` of the probability flow, with Hutchinson's trace or the exact one, integrated by diffrax |
| `guidance` | `guided` (classifier-free guidance, on an interval of t), `steered` (classifier guidance, by any gradient) |
| `grids` | which timesteps a sampler visits |
| `mixture` | `Mixture`: the exact density, score, denoiser, reverse process and modes of a mixture of Gaussians |

## Clipping

Nothing is clipped unless the denoiser has a `clip`.  The samplers and the bound obey it.  The losses, the likelihood
and the inversion ignore it.  Guidance mixes unclipped outputs, and the result clips as its first denoiser does.
Images that were scaled to [-1, 1] are usually sampled with `clipping.Clip()`.  Data outside [-1, 1] must not be.

## Data with a known truth

`mixture.Mixture` knows p(z_t), its score, E[x | z_t] and q(z_{t-1} | z_t) exactly, so a sampler, a bound or a trained
network can be compared with the truth.  The notes in experiments/notes use it throughout.
"""
