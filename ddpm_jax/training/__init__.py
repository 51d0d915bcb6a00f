"""From a source of images to the parameters of a network: state, step, loop, and what they write to disk."""
