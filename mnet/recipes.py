"""How to train, as data: a recipe is a row, and the training loop reads it."""

from dataclasses import dataclass, replace
from enum import Enum

from mnet.architecture import STANDARD, Shape, shape_of
from mnet.errors import MnetError


class Normalization(Enum):
    """How a byte becomes the network's real input. In int8 both are exactly byte - 128."""

    UNIT = "x/255"
    SYMMETRIC = "x/128 - 1"

    @property
    def scale(self) -> float:
        """What one step of the int8 input is worth."""
        return 1 / 255 if self is Normalization.UNIT else 1 / 128

    @property
    def zero_point(self) -> int:
        """The int8 value that stands for 0.0."""
        return -128 if self is Normalization.UNIT else 0


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training image; the largest displacements, drawn anew for each image and epoch."""

    flip: bool = False  # left to right, every other image
    crop_padding: int = 0  # pixels: pad by reflection, then cut out a window of the old size
    cutout: int = 0  # side of a square, somewhere, that becomes grey (DeVries and Taylor 2017)
    shift_fraction: float = 0.0  # of height and width, not in whole pixels; uncovered pixels repeat the nearest one
    zoom: float = 0.0  # share by which height and width grow or shrink
    light: float = 0.0  # brightness as a share of the full range, and contrast as a factor's distance from 1


@dataclass(frozen=True)
class NesterovSgd:
    """Stochastic gradient descent with Nesterov momentum; the rate warms up linearly, then falls as a half cosine."""

    learning_rate: float  # the peak
    momentum: float = 0.9
    warm_up: float = 0.04  # of all steps
    weight_decay: float = 5e-4  # of ordinary convolutions; not of depthwise kernels, normalisation and bias


@dataclass(frozen=True)
class Nadam:
    """Nadam as Keras has it, at one rate throughout."""

    learning_rate: float = 1e-3
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7


Optimizer = NesterovSgd | Nadam


@dataclass(frozen=True)
class Distillation:
    """How a teacher's answers count, where there is a teacher (`--teacher`)."""

    share: float = 0.7  # of the loss; the rest is for the labels
    temperature: float = 3.0  # both networks' logits are divided by it


@dataclass(frozen=True)
class Recipe:
    """All that turns images into weights, except the images and the network."""

    name: str
    what: str
    epochs: int
    batch: int
    optimizer: Optimizer
    augmentation: Augmentation
    normalization: Normalization
    initializer: str  # of all kernels, by its Keras name
    label_smoothing: float = 0.0
    average_decay: float = 0.0  # of the moving average of the weights, per step; 0 uses the weights as they are
    normalization_momentum: float = 0.99  # of the moving statistics of BatchNormalization, per step
    shape: Shape = STANDARD  # of the network, unless the user names another
    alpha: float = 0.25  # that goes with it
    minutes: float | None = None  # in place of epochs: the schedule follows the clock
    distillation: Distillation = Distillation()
    images: int | None = None  # that pass in all: many images take fewer epochs than `epochs`
    balanced: bool = False  # show each class as often as any other, whatever its images are
    body_rate: float = 1.0  # of all layers but the classifier, as a share of the learning rate
    goes_on: bool = False  # with augmentation and label smoothing of the run that the network comes from

    def steps(self, per_epoch: int, done: int, seconds: float) -> int:
        """Return how many steps the whole training takes: the epochs', or what the minutes allow at the pace so far.

        Args:
            per_epoch: steps of an epoch.
            done: steps so far.
            seconds: that these took.

        >>> replace(DEFAULT, minutes=2.0).steps(100, done=50, seconds=30.0)
        200
        """
        if self.minutes is None or not done or not seconds:
            return self.epochs * per_epoch
        return int(done * self.minutes * 60 / seconds)


SEED = Recipe(
    name="seed",
    what="the recipe of the article that this project started from: Nadam, 200 epochs, shifts and flips",
    epochs=200,
    batch=32,
    optimizer=Nadam(),
    augmentation=Augmentation(flip=True, shift_fraction=0.1),
    normalization=Normalization.UNIT,
    initializer="glorot_uniform",
    alpha=0.5,
)

DEFAULT = Recipe(
    name="default",
    what="small nets, 30 to 300 epochs: SGD with warm-up and cosine, crops and flips, averaged weights",
    epochs=60,
    batch=128,
    optimizer=NesterovSgd(learning_rate=0.25),
    augmentation=Augmentation(flip=True, crop_padding=4),
    normalization=Normalization.SYMMETRIC,
    initializer="he_normal",
    label_smoothing=0.05,
    average_decay=0.9975,
    normalization_momentum=0.97,
)

SAMPLE = Recipe(
    name="sample",
    what="about a minute on the bundled sample: few images, so small batches and hardly any augmentation",
    epochs=40,
    batch=64,
    optimizer=NesterovSgd(learning_rate=0.25),
    augmentation=Augmentation(flip=True, crop_padding=1),
    normalization=Normalization.SYMMETRIC,
    initializer="he_normal",
    label_smoothing=0.05,
    average_decay=0.99,
    normalization_momentum=0.95,
)

TRANSFER = Recipe(
    name="transfer",
    what="from a trained network to a user's own pictures, a few dozen of each class: the classifier learns fastest",
    epochs=200,
    batch=32,
    optimizer=NesterovSgd(learning_rate=0.1),
    augmentation=Augmentation(flip=True, shift_fraction=0.1, zoom=0.15, light=0.1),
    normalization=Normalization.SYMMETRIC,
    initializer="he_normal",
    label_smoothing=0.05,
    average_decay=0.99,
    normalization_momentum=0.95,
    images=60_000,
    balanced=True,
    body_rate=0.3,
)

_SHAPED = replace(DEFAULT, alpha=1.0, label_smoothing=0.0)

TINY = replace(
    _SHAPED,
    name="tiny",
    what="1.17 M multiply-adds at 32x32, for a Cortex-M0+ with 8 KB: as default, longer; capacity is its limit",
    epochs=200,
    shape=shape_of("16s2,24,24,48s2,48,56,96s2,96"),
)

SMALL = replace(
    _SHAPED,
    name="small",
    what="4.9 M multiply-adds at 32x32: as tiny, with cutout and label smoothing",
    epochs=150,
    augmentation=Augmentation(flip=True, crop_padding=4, cutout=8),
    label_smoothing=0.05,
    shape=shape_of("16,24,40s2,40,48,96s2,96,96,96,160s2"),
)

LARGE = replace(
    SMALL,
    name="large",
    what="12.1 M multiply-adds at 32x32: as small, with more cutout",
    epochs=100,
    augmentation=Augmentation(flip=True, crop_padding=4, cutout=12),
    shape=shape_of("24,40,64s2,72,72,144s2,144,144,144,256s2,256"),
)

# Quantization-aware training, after any of these; images, batch and normalization stay those of the run. The rate is
# small because nothing normalizes any more: 0.01 destroys what was trained, 0.001 costs a little.
QAT = replace(
    DEFAULT,
    name="qat",
    what="quantization-aware: on from a trained network in int8, at a low rate that falls to 0",
    epochs=4,
    optimizer=NesterovSgd(learning_rate=2e-4, warm_up=0.02, weight_decay=0.0),
    label_smoothing=0.0,  # of no labels: a float network teaches
    distillation=Distillation(share=1.0, temperature=1.0),
)

POLISH = replace(
    DEFAULT,
    name="polish",
    what="on from a trained network (--from) as it was trained, at a rate that begins low",
    epochs=40,
    optimizer=NesterovSgd(learning_rate=0.08),
    goes_on=True,
)

RECIPES = {recipe.name: recipe for recipe in (SEED, DEFAULT, SAMPLE, TRANSFER, POLISH, TINY, SMALL, LARGE)}


def recipe(name: str) -> Recipe:
    """Return the recipe called `name`.

    Raises:
        MnetError: there is none.
    """
    if name not in RECIPES:
        raise MnetError(f"--recipe {name} does not exist; choose from {', '.join(RECIPES)}.")
    return RECIPES[name]
