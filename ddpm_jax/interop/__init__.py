"""Exchange of networks with other libraries: `interop.diffusers` reads and writes the folders of diffusers."""
