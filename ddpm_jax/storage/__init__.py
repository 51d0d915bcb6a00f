"""What lies on disk?  The folder of a run: its description, checkpoints, metrics and lock, local or in an object store.

    experiment.json      what is trained, and a copy of the experiment file if it defines classes
    data.json            digests of the data
    checkpoints/STEP/    the state after STEP steps
    snapshots/STEP/      averages that are kept for good, if the experiment asks for them
    metrics.jsonl        one line every `log_every` steps
    tensorboard/         the same for TensorBoard
    samples/STEP.png     images drawn with the averaged parameters
    lock                 held while a job trains in the folder

```python
from ddpm_jax import schedule
from ddpm_jax.storage import specs

stored = specs.encode(schedule.Cosine(num_steps=100))  # a dictionary, as experiment.json holds it
assert stored["num_steps"] == 100
```

A dataclass is stored as its public name and its fields: "schedule:Cosine" is `ddpm_jax.schedule.Cosine`, wherever its
file is.  Classes of an experiment file or a notebook are stored with their source code.

## Runs that survive

- **Preemption.**  A job that gets SIGTERM finishes its step, saves, and ends with status 0.  The same command resumes it,
  with the same numbers and the same lines of metrics as if it had never stopped.
- **Damage.**  Every checkpoint is verified when it is read.  A damaged one is named, and the one before it is used.
- **A full disk.**  Training continues, reports the last good checkpoint, and tries again at the next one.  One of many
  processes ends instead.
- **Two jobs.**  One job trains in a folder at a time.  A second job is refused, with the host and process of the first.
- **Changed data.**  A run whose data have changed is not resumed until the data are put back or data.json is deleted.
- **Object stores.**  With `pip install -e .[gcs]` the folder may be in an object store, `--workdir gs://bucket/run`.  A
  job that was killed holds such a folder for up to ten minutes.
"""
