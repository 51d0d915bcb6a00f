"""What does one type?  The command `ddpm-jax`, one file for each of its commands, and runnable experiment files.

    python experiments/digits.py --workdir runs/digits          an experiment file is a command
    ddpm-jax train EXPERIMENT [overrides]                       the same, also from the experiment.json of a run
    ddpm-jax train EXPERIMENT --dry-run                         shapes, parameters, FLOPs and memory, in seconds
    ddpm-jax sample RUN --num-images 1000 --output samples.npz
    ddpm-jax sample RUN --sampler dpm-solver --steps 20 --guidance 2 --label 8
    ddpm-jax evaluate RUN --num-samples 1000 --features pixels
    ddpm-jax check DATA                                         every fault of a data set
    ddpm-jax prepare NAME SOURCE                                write a TFDS data set
    ddpm-jax import PATH, ddpm-jax export RUN PATH              exchange with diffusers

`ddpm-jax COMMAND --help` describes the options of a command.  An experiment file calls `launch`:

    from ddpm_jax import Experiment, clipping, data, launch, nets

    experiment = Experiment("mine", data.Folder("~/photos", size=32), nets.UNet(), clip=clipping.Clip())

    if __name__ == "__main__":
        launch(experiment)

Every field of the experiment is an option, for example `--optimizer.learning-rate 1e-4`.  The same command resumes a
run from its newest checkpoint, also after Ctrl-C, `kill` or `kill -9`.

Errors that the user can correct end with one line and exit status 2.  `DDPM_JAX_DEBUG=1` shows the traceback too.  A
run that was interrupted by Ctrl-C ends with status 130, and one that was preempted ends with status 0.
"""
