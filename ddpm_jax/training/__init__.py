"""How is it learned?  From a source of images to averaged parameters: algorithm 1 of Ho et al. 2020, at any scale.

There are two entrances.  `ddpm_jax.train(experiment, workdir)` trains an `Experiment` in a folder; it logs, saves and
resumes.  `ddpm_jax.fit(key, recipe, draw_x, num_steps)` trains a small network in one call and saves nothing:

```python
import jax
from ddpm_jax import Denoiser, Recipe, fit, mixture, nets, schedule, targets

points = mixture.Mixture.of([0.3, 0.7], means=[[-0.7, 0.0], [0.5, 0.2]], stds=0.1)
recipe = Recipe(nets.Mlp(width=64), schedule.Linear(num_steps=1000).build())
state, losses = fit(jax.random.key(0), recipe, lambda key: points.sample(key, 256), num_steps=200)

learned = Denoiser(recipe.net.bind(state.ema_params[0]), recipe.process)
z = points.diffused(recipe.process, 300).sample(jax.random.key(1), 8)
score = targets.convert(recipe.process, learned.predict(z, 300), z, 300, targets.Eps(), targets.Score())
error = score - points.diffused(recipe.process, 300).score(z)  # [8, 2]
```

One step, for a batch x of the step number n:

    t, eps  drawn from (seed, n)
    loss    = mean of w_t objective(model, x, draws)
    params  <- optimizer(gradient of the loss)
    average <- beta average + (1 - beta) params

| name | what it is |
|---|---|
| `Experiment` | everything that determines a run, as one frozen dataclass |
| `Plan` | the mesh, the shapes and the recipe, computed once by `experiment.plan()` |
| `Recipe` | the parts of a step, built; `recipe.step(state, batch, key)` is one step |
| `TrainState` | the arrays that change |
| `optimizer.Adam`, `optimizer.Optimizer` | how gradients become updates; the protocol for your own |
| `average.Ema`, `average.PowerEma` | the averages of the parameters |

Data order and noise depend on (seed, step) alone.  A run gives the same numbers on any number of devices, up to
rounding, and may be resumed on another number.

## Averages

Samples are drawn with an average of the parameters.  By default it is exponential, and its decay grows from 0.18 to
0.9999 in the course of the training, so it suits short and long training.  `Ema(0.9999, warmup=False)` is that of Ho
et al. 2020.  `train` warns at the start if more than 5% of the average would still be untrained at the end.
`ema=Ema(0.9999, others=(0.999,))` keeps several exponential averages.

`ema=PowerEma(width=0.10, others=(0.05,), snapshot_every=20_000)` (Karras et al. 2024) keeps snapshots.  An average of
any width can be made from them after the training: `ddpm-jax sample RUN --ema 0.15`, or `load_run(folder,
ema=0.15)`.  With 40 snapshots every width from 0.03 to 0.2 is within 1% of its profile; a poor fit is reported.

## Metrics of a training

Each line of `metrics.jsonl` and TensorBoard has the loss, the loss by quarter of t, the norms of the gradient and the
parameters, images per second (in all, and on each device), the share of the time spent waiting for data, and the peak
memory.  If the peak speed of the device is known, it also has the model FLOP utilisation (`mfu`).

`--profile 100 110` writes a profiler's trace of those steps.  `--debug-nans` names the line of code that made the
first number that is not finite.  A log file begins with the devices, parameters, folder, step and data of the run.
"""
