"""`python -m ddpm_jax` is `ddpm-jax`."""

from ddpm_jax.launch import main

main()
