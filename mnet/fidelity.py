"""How near an int8 file is to float networks, image by image: the same answer, and how far its logits are away."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mnet import golden
from mnet.datasets import Images, batches
from mnet.graph import Softmax, Tensor
from mnet.oracle import LITERT
from mnet.tflite import parse_model

_BATCH = 100


@dataclass(frozen=True)
class Fidelity:
    """Logits of the int8 file against those of a float network."""

    images: int
    same_answer: float  # fraction of the images whose largest logit is that of the same class
    same_logits: float  # fraction whose logits, rounded to the file's steps, are all the same
    mean_steps: float  # root of the mean squared difference of a logit, in steps of the file's logits
    largest_steps: float
    step: float  # scale of the file's logits


def int8_logits(content: bytes, x: Images, name: str) -> tuple[npt.NDArray[np.int8], Tensor]:
    """Return the logits [images, classes] of an int8 classifier, in LiteRT's bits, and their tensor.

    Args:
        content: of the .tflite.
        x: byte images; the model gets byte - 128.
        name: of the file, for messages.
    """
    graph = parse_model(content, Path(name))
    last = graph.ops[-1]
    tensor = graph.tensors[last.input if isinstance(last, Softmax) else graph.outputs[0]]
    given: npt.NDArray[np.int8] = (x ^ 0x80).view(np.int8)
    parts = [golden.run(graph, LITERT, {graph.inputs[0]: given[part]})[tensor.name] for part in batches(len(x), _BATCH)]
    return np.concatenate(parts).reshape(len(x), -1), tensor


def fidelity(logits: npt.NDArray[np.int8], tensor: Tensor, real: npt.NDArray[np.floating]) -> Fidelity:
    """Compare int8 logits with those of a float network.

    Args:
        logits: [images, classes].
        tensor: of these, for scale and zero point.
        real: [images, classes].
    """
    steps = real / tensor.scale + tensor.zero_point  # where the float logits lie on the file's scale
    difference = logits - np.clip(steps, -128, 127)
    return Fidelity(
        images=len(logits),
        same_answer=float(np.mean(logits.argmax(axis=1) == real.argmax(axis=1))),
        same_logits=float(np.mean(np.all(np.abs(difference) <= 0.5, axis=1))),
        mean_steps=float(np.sqrt(np.mean(difference**2))),
        largest_steps=float(np.abs(difference).max()),
        step=float(tensor.scale),
    )
