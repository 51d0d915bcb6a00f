"""`python -m ddpm_jax` is `ddpm-jax`."""

from ddpm_jax.cli.main import main

main()
