#!/bin/bash
# Train on all hosts of a Cloud TPU pod slice, from a machine with gcloud:
#
#     scripts/tpu_pod.sh my-tpu us-central2-b train experiments/cifar10.py --workdir /mnt/shared/runs/cifar10
#
# runs `ddpm-jax train ...` on every host, in the folder ddpm_jax of the home directory (TPU_FOLDER=... names another).
# Install the package on every host first:
#
#     gcloud compute tpus tpu-vm ssh my-tpu --zone=us-central2-b --worker=all \
#         --command='git clone REPOSITORY ddpm_jax && cd ddpm_jax && pip install -e .[tpu]'
#
# The run folder is one that all hosts can write.  The hosts find one another from the pod's metadata.  After a
# preemption, or when a host was lost, the same command resumes from the last checkpoint.
set -euo pipefail

if (($# < 3)); then
    echo "usage: $0 TPU ZONE COMMAND [ARGUMENT ...], where COMMAND is train or sample" >&2
    exit 2
fi
tpu=$1 zone=$2 command=$3
shift 3

arguments=$(printf '%q ' "$@" --distributed)
folder=$(printf '%q' "${TPU_FOLDER:-ddpm_jax}")
# PATH: without a virtual environment, pip installs commands there.
gcloud compute tpus tpu-vm ssh "$tpu" --zone="$zone" --worker=all \
    --command="cd $folder && PATH=\$HOME/.local/bin:\$PATH ddpm-jax $command $arguments"
