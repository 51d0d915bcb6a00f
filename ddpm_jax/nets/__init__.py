"""The networks.  Everything they know of diffusion is that they are called as predict(z_t, t)."""
