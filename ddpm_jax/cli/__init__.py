"""The commands of `ddpm-jax`, one file each: what can be asked, and the work done."""
