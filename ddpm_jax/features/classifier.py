"""Features of a classifier that is trained on the user's data, as Inception is on photographs.

    classifier = train_classifier(source)                        any source with labels
    save_classifier("mnist.safetensors", classifier, about)
    extractor = load_classifier("mnist.safetensors")             from the file alone

Inception-v3 learned from photographs of 299 pixels, and says little about digits of 28 or 8.  Distances in the features
of another classifier are not FID, and compare only with one another.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from ddpm_jax.data import Folder, Npz, Source, Tfds, accept, sources, splits
from ddpm_jax.data.images import to_unit
from ddpm_jax.data.source import Subset
from ddpm_jax.data.stream import batches, sequential
from ddpm_jax.devices.precision import quoted
from ddpm_jax.diffusion.arrays import Key, Pixels, stream
from ddpm_jax.errors import require, require_int
from ddpm_jax.features.download import sha256_of
from ddpm_jax.features.extractor import Extracted, Extractor, existing_file
from ddpm_jax.nets.classifier import ConvClassifier
from ddpm_jax.storage.paths import local_path, write_bytes
from ddpm_jax.training.optimizer import Adam

__all__ = ["Classifier", "accuracy", "load_classifier", "read_classifier", "save_classifier", "train_classifier"]

FORMAT = "ddpm_jax classifier 1"
CHUNK = 256
SPEC = [field.name for field in dataclasses.fields(ConvClassifier)]


@dataclass(frozen=True)
class Classifier:
    """A trained classifier of images of one shape."""

    spec: ConvClassifier
    image_shape: tuple[int, int, int]
    params: Any

    @property
    def apply(self) -> Callable[[Any], Extracted]:
        """Maps uint8 images to features and logits; a pytree that holds the parameters."""
        return jax.tree_util.Partial(functools.partial(_classify, self.spec, self.image_shape), self.params)


@quoted
@functools.partial(jax.jit, static_argnums=(0, 1))
def _classify(spec: ConvClassifier, shape: tuple[int, int, int], params: Any, images: Any) -> Extracted:
    if images.shape[1:] != shape:
        given, taken = ("x".join(map(str, sizes)) for sizes in (images.shape[1:], shape))
        raise ValueError(f"images are {given}; this classifier was trained on {taken}")
    return Extracted(*spec.apply(params, to_unit(images)))


def train_classifier(
    source: Source,
    *,
    num_classes: int | None = None,
    width: int = 32,
    features: int = 64,
    num_steps: int = 1500,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    seed: int = 0,
    report: Callable[[int, float], None] | None = None,
) -> Classifier:
    """Train a classifier by Adam with a cosine decay, on images that are shifted by a pixel or two at random.

    The same arguments give the same parameters on the same machine.

    Args:
        source: examples with labels.
        num_classes: the number of classes; None: one more than the highest label, for which all labels are read.
        width: that of the first convolution.
        features: the number of features.
        num_steps: the number of optimizer steps.
        batch_size: examples in a step.
        learning_rate: the highest learning rate.
        seed: the seed of the initial parameters, the order of the examples and the shifts.
        report: called with the step and the loss, every 100 steps.

    Returns:
        The trained classifier.

    Raises:
        ValueError: the examples have no labels, or a label is out of range.
    """
    require_int("num_steps", num_steps, 1)
    shape = sources.image_shape(source)
    if "label" not in source[0]:
        raise ValueError("the data have no labels; a classifier learns from labels")
    spec = ConvClassifier(count_classes(source) if num_classes is None else num_classes, width, features)
    key = jax.random.key(seed)
    params = spec.init(stream(key, "init"), shape)
    optimizer = Adam(learning_rate, warmup_steps=num_steps // 10, decay="cosine", weight_decay=1e-4).build(num_steps)
    state = optimizer.init(params)
    step_of = _step(spec, optimizer)
    # No scan over steps: on CPUs gradients of convolutions are 20 times slower inside one.
    for step, batch in zip(range(num_steps), batches(source, batch_size, seed), strict=False):
        accept.check_labels(batch, spec.num_classes, "num_classes")
        step_key = jax.random.fold_in(stream(key, "shift"), step)
        params, state, loss = step_of(params, state, step_key, batch["image"], batch["label"])
        if report is not None and (step + 1) % 100 == 0:
            report(step + 1, float(loss))
    return Classifier(spec, shape, params)


def _step(spec: ConvClassifier, optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    @jax.jit
    def step(params: Any, state: Any, key: Key, images: Any, labels: Any) -> Any:
        x = to_unit(moved(key, images))

        def loss_of(params: Any) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(spec.apply(params, x)[1], labels).mean()

        loss, gradient = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    return step


def moved(key: Key, images: Pixels) -> Any:
    """Shift each image at random in each direction, by up to 1/14 of its size (1 pixel at least), repeating its edge.

    Args:
        key: the key of the shifts.
        images: the images.

    Returns:
        The shifted images, of the same shape.
    """
    far = max(1, min(images.shape[1:3]) // 14)
    padded = jnp.pad(images, ((0, 0), (far, far), (far, far), (0, 0)), mode="edge")
    starts = jax.random.randint(key, (len(images), 2), 0, 2 * far + 1)
    size = images.shape[1:]
    return jax.vmap(lambda image, start: jax.lax.dynamic_slice(image, (start[0], start[1], 0), size))(padded, starts)


def count_classes(source: Source) -> int:
    """One more than the highest label; reads every example."""
    highest = max(int(batch["label"].max()) for batch in sequential(source, CHUNK))
    require("num_classes", highest + 1, highest >= 1, "two or more different labels")
    return highest + 1


def accuracy(classifier: Classifier, source: Source) -> float:
    """The fraction of examples whose largest logit is that of their label.

    Args:
        classifier: the classifier.
        source: the examples, with labels.

    Returns:
        The fraction.
    """
    right = []
    for batch in sequential(source, min(CHUNK, len(source)), fill=True):
        right.append(np.asarray(classifier.apply(batch["image"]).logits).argmax(-1) == batch["label"])
    return float(np.concatenate(right)[: len(source)].mean())


def labelled(source: Source) -> Source:
    """The source with its labels switched on; ValueError if it has no labels."""
    if "label" in source[0]:
        return source
    if isinstance(source, Tfds):
        return dataclasses.replace(source, label_key="label")
    if isinstance(source, Npz):
        return dataclasses.replace(source, labels=source.images.replace("images", "labels"))
    if isinstance(source, Folder):
        return dataclasses.replace(source, labels=True)
    raise ValueError(f"data is {source!r}, whose examples have no label, an integer; a classifier learns from labels")


def held_out(source: Source, seed: int = 0) -> tuple[Source, Source, str]:
    """Split data into a part for training and a part for testing.

    Args:
        source: the data.
        seed: the seed of the random part.

    Returns:
        The source for training, the source for testing, and the name of the latter: the test split of the data if there
        is one, and a random tenth of the source otherwise.

    Raises:
        ValueError: there is no test split, and there are fewer than 10 examples.
    """
    test = splits.held_out_split(source)
    if test is not None:
        return source, test, "the split test"
    count = len(source)
    require("data", f"{count} examples", count >= 10, "10 at least, of which a tenth is held out")
    order = np.random.RandomState(seed).permutation(count)
    chosen, rest = np.sort(order[: count // 10]), np.sort(order[count // 10 :])
    return Subset(source, rest), Subset(source, chosen), f"a held-out tenth, {len(chosen)} images"


def save_classifier(path: str | os.PathLike, classifier: Classifier, about: dict[str, Any]) -> None:
    """Write a classifier as a safetensors file.

    The file is replaced atomically.  Equal classifiers give equal files.

    Args:
        path: the file.
        classifier: the classifier.
        about: further facts, such as accuracy, data and seed; stored as text.
    """
    from safetensors.numpy import save

    arrays = {name: np.asarray(leaf) for name, leaf in flatten_dict(classifier.params, sep="/").items()}
    known = {"format": FORMAT, "image_shape": json.dumps(classifier.image_shape)}
    known |= {name: str(value) for name, value in dataclasses.asdict(classifier.spec).items()}
    facts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in about.items()}
    write_bytes(local_path(path), _sorted_header(save(arrays, metadata={**facts, **known})))


def _sorted_header(content: bytes) -> bytes:
    """A safetensors file with the entries of its header sorted by name; safetensors writes them in random order."""
    size = int.from_bytes(content[:8], "little")
    text = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def load_classifier(path: str | os.PathLike) -> Extractor:
    """The extractor of a classifier in a file that `save_classifier` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else.
    """
    found = existing_file(path, "a classifier, which scripts/train_features.py writes")
    classifier, _ = read_classifier(found)
    shape = "x".join(map(str, classifier.image_shape))
    preprocessing = f"pixels / 127.5 - 1, {shape} as they are"
    return Extractor(f"classifier {found.stem}", sha256_of(found), preprocessing, classifier.apply)


def read_classifier(path: Path) -> tuple[Classifier, dict[str, str]]:
    """A classifier, and the facts that its file states; ValueError if the file holds something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in list(file.keys())}
    except SafetensorError as error:
        why = f"({error}); the file is damaged or is of another kind"
        raise ValueError(f"{path} cannot be read as safetensors {why}") from None
    if about.get("format") != FORMAT:
        remedy = f"For weights of Inception-v3, write inception:{path}"
        raise ValueError(f"{path} is not a classifier; expected one that scripts/train_features.py wrote. {remedy}")
    try:
        height, width, channels = map(int, json.loads(about["image_shape"]))
        spec, shape = ConvClassifier(*(int(about[name]) for name in SPEC)), (height, width, channels)
        shapes = jax.eval_shape(lambda key: spec.init(key, shape), jax.random.key(0))
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: its description cannot be read ({error})") from None
    expected: dict[str, Any] = flatten_dict(shapes, sep="/")
    right = {name: (leaf.shape, np.dtype(np.float32)) for name, leaf in expected.items()}
    if {name: (array.shape, array.dtype) for name, array in arrays.items()} != right:
        raise ValueError(f"{path} is damaged: its arrays are not those of {spec} for images of {shape}")
    params = unflatten_dict({name: jnp.asarray(array) for name, array in arrays.items()}, sep="/")
    return Classifier(spec, shape, params), about
