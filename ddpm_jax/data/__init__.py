"""What is learned from?  `Digits`, `Arrays`, `Npz`, `Folder` and `Tfds`, or any class that is a `Source`.

    len(source)     the number of examples
    source[i]       {"image": uint8 [height, width, channels]}, and "label": an int32, if there are labels

| source | the data |
|---|---|
| `Digits(split="train")` | 1,797 handwritten digits of 8x8 pixels, in this package |
| `Arrays.of(images, labels)` | arrays of a notebook |
| `Npz("images.npz")` | arrays of a file: uint8 [N, height, width, channels] |
| `Folder("~/photos", size=64)` | image files, cropped and resized |
| `Tfds("cifar10", split="train")` | TensorFlow Datasets in the array_record format; TensorFlow is not needed |

```python
import numpy as np
from ddpm_jax.data import Arrays, Digits

digits = Digits(split="test")
example = digits[0]  # {"image": uint8 [8, 8, 1], "label": int32}
images = np.zeros((10, 8, 8), np.uint8)
source = Arrays.of(images, labels=np.arange(10))
```

Batch n is a function of the seed and n alone, so a run can stop at any step, and use any number of processes.

## Your own data

Put a source into the `data` of an experiment file, for example a copy of experiments/digits.py:

    python mine.py --help                        # every setting, its meaning and default
    python mine.py --dry-run                     # shapes, parameters, FLOPs, memory; in seconds
    python mine.py --optimizer.learning-rate 1e-4 --batch-size 64
    ddpm-jax train mine.py                       # the same; also takes the experiment.json of a run

`ddpm-jax check DATA` reads a whole data set: a folder, an .npz, a TFDS name, an experiment or FILE.py:NAME. It lists
counts, shapes, values, classes and every fault.  Its exit status is 1 if there are any.

A TFDS data set can be written without a network, from arrays or a folder.  It is then read like a downloaded one:

    ddpm-jax prepare mnist mnist.npz             # train_images, train_labels, test_images, test_labels
    python experiments/mnist.py

A source of your own is a frozen dataclass in the experiment file or in a notebook cell; its code is saved with the
run.  For data that are no dataclass the run keeps a digest: pass the same data again to resume it.  An image that
cannot be read, or a label that is not a class, ends a training with its state saved.
"""

from ddpm_jax.data.deferred import Deferred
from ddpm_jax.data.folder import Folder
from ddpm_jax.data.given import Given
from ddpm_jax.data.source import Source
from ddpm_jax.data.sources import Arrays, Digits, Npz
from ddpm_jax.data.tfds import Tfds

__all__ = ["Arrays", "Deferred", "Digits", "Folder", "Given", "Npz", "Source", "Tfds"]
