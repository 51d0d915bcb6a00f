"""All that follows from an experiment and its devices, worked out once and passed to everything that trains."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.devices.axes import entered
from ddpm_jax.devices.mesh import by_example, check_divides, shardings, with_sharding
from ddpm_jax.diffusion.arrays import Key, stream
from ddpm_jax.errors import require
from ddpm_jax.training.state import TrainState
from ddpm_jax.training.step import Recipe, TrainStep, compile_step


@dataclass(frozen=True, eq=False)
class Plan:
    """The mesh, the shapes and the recipe of a training; made by `Experiment.plan`."""

    experiment: Any
    """The `Experiment`."""
    mesh: Mesh
    """The devices, with automatic axes."""
    image_shape: tuple[int, int, int]
    """(height, width, channels)."""
    recipe: Recipe
    """The parts of a step, built."""
    state: TrainState
    """Shape, dtype and sharding of each array of the state."""
    batch: dict[str, jax.ShapeDtypeStruct]
    """Shape, dtype and sharding of each array of a batch."""

    @classmethod
    def of(cls, experiment: Any, mesh: Mesh, image_shape: tuple[int, int, int]) -> "Plan":
        """The plan for images of this shape; raises ValueError if the batch does not divide over the devices."""
        check_divides(mesh, experiment.batch_size, experiment.accumulate)
        size = experiment.batch_size
        batch = {"image": jax.ShapeDtypeStruct((size, *image_shape), np.uint8)}
        if experiment.net.num_classes is not None:
            batch["label"] = jax.ShapeDtypeStruct((size,), np.int32)
        with entered(mesh):  # the tables of the process, too, must not lie on another mesh that the user has set
            recipe = experiment.recipe()
            state = jax.eval_shape(lambda: recipe.start(_initial(recipe, jax.random.key(0), image_shape)))
            state = with_sharding(state, experiment.mesh.place(mesh, state))
            return cls(experiment, mesh, image_shape, recipe, state, with_sharding(batch, by_example(mesh)))

    def fresh_state(self) -> TrainState:
        """The state before the first step, on the devices."""
        key = stream(jax.random.key(self.experiment.seed), "init")
        return self.on_devices(self.recipe.start(_initial(self.recipe, key, self.image_shape)))

    def on_devices(self, state: TrainState) -> TrainState:
        """A state, placed as planned."""
        return jax.device_put(state, shardings(self.state))

    def step(self, donate: bool = True) -> TrainStep:
        """The jitted step, traced but not compiled, so that a part that does not fit is an error now.

        Args:
            donate: whether the step may overwrite the state that it is given.
        """
        step = compile_step(self.recipe, shardings(self.state), donate)
        jax.eval_shape(step, self.state, self.batch, jax.eval_shape(lambda: jax.random.key(0)))
        return step

    @property
    def epochs(self) -> float:
        """How often the training sees each example, on average."""
        return self.experiment.num_steps * self.experiment.batch_size / len(self.experiment.data)

    def changed(self, **fields: Any) -> "Plan":
        """The plan of the same experiment with other values of some fields, for the same devices and data."""
        other = replace(self.experiment, **fields)
        mesh = other.mesh.build() if "mesh" in fields else self.mesh
        return Plan.of(other, mesh, self.image_shape)


def _initial(recipe: Recipe, key: Key, image_shape: tuple[int, ...]) -> Any:
    """The network's fresh parameters; ValueError unless they are arrays of floats."""
    params = recipe.net.init(key, image_shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        is_float = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
        name = f"net.init(){jax.tree_util.keystr(path)}"
        require(name, leaf, is_float, "an array of floats; numbers that are not trained belong in `bind`")
    return params
