"""The named data sets: ONE table of facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from localprop.data import cifar100
from localprop.data.augment import Augmentation

_TRAIN_OR_TEST: Mapping[str, Mapping[str, object]] = {"train": {"train": True}, "test": {"train": False}}
_BY_SPLIT: Mapping[str, Mapping[str, object]] = {part: {"split": part} for part in ("train", "extra", "test")}


@dataclass(frozen=True)
class DataEntry:
    """Describes a named data set.

    Attributes:
        title: Its full name.
        terms: Licence, or the terms of use where there is none.
        image_shape: Shape (C, H, W) of one image.
        num_train: Number of training images.
        num_test: Number of test images.
        class_names: Names of the classes, in the order of the labels.
        mean: Mean of every channel of the training images, pixels scaled to 0..1; None: computed when it is loaded.
        std: Standard deviation, same scale; None likewise.
        augmentation: What training images are varied by unless the user says otherwise.
        source: Who made it: authors, title, year.
        torchvision_name: Its class in `torchvision.datasets`; None where it ships inside the package.
        stem: Start of its Parquet files' names: STEM-train.parquet.
        train_parts: The parts whose images are trained on, in order.
        torchvision_splits: What torchvision's class is asked for, for every part and for "test".
        super_names: Names of groups of classes; none for most sets.
        super_of: The group of each class.
        groups_of: The set whose groups are this one's classes, where that is all the difference.
        made_of: The set whose images this one is generated from; see `data.hierarchical` and `data.backgrounds`.
    """

    title: str
    terms: str
    image_shape: tuple[int, int, int]
    num_train: int
    num_test: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    augmentation: Augmentation
    source: str
    torchvision_name: str | None
    stem: str
    train_parts: tuple[str, ...] = ("train",)
    torchvision_splits: Mapping[str, Mapping[str, object]] = field(default_factory=lambda: _TRAIN_OR_TEST)
    super_names: tuple[str, ...] = ()
    super_of: tuple[int, ...] = ()
    groups_of: str | None = None
    made_of: str | None = None


_FASHION = DataEntry(
    title="Fashion-MNIST",
    terms="MIT, Zalando SE",
    image_shape=(1, 28, 28),
    num_train=60_000,
    num_test=10_000,
    class_names=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    mean=(0.2860,),
    std=(0.3530,),
    augmentation=Augmentation(flip=True),
    source=(
        "H. Xiao, K. Rasul, R. Vollgraf. Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine "
        "Learning Algorithms, 2017. arXiv:1708.07747"
    ),
    torchvision_name="FashionMNIST",
    stem="fashion-mnist",
)

_MNIST = DataEntry(
    title="MNIST handwritten digits",
    terms="CC BY-SA 3.0, Y. LeCun, C. Cortes, C. Burges",
    image_shape=(1, 28, 28),
    num_train=60_000,
    num_test=10_000,
    class_names=tuple("0123456789"),
    mean=(0.1307,),
    std=(0.3081,),
    augmentation=Augmentation(),
    source=(
        "Y. LeCun, L. Bottou, Y. Bengio, P. Haffner. Gradient-Based Learning Applied to Document Recognition, 1998"
    ),
    torchvision_name="MNIST",
    stem="mnist",
)

_GENERATED = replace(_MNIST, num_train=20_000, num_test=4_000, mean=None, std=None, made_of="mnist")

_CIFAR100 = DataEntry(
    title="CIFAR-100",
    terms="no formal licence; free for research, cite the source",
    image_shape=(3, 32, 32),
    num_train=50_000,
    num_test=10_000,
    class_names=cifar100.CLASS_NAMES,
    mean=None,
    std=None,
    augmentation=Augmentation(crop_padding=4, flip=True),
    source="A. Krizhevsky. Learning Multiple Layers of Features from Tiny Images, 2009",
    torchvision_name="CIFAR100",
    stem="cifar100",
    super_names=cifar100.SUPER_NAMES,
    super_of=cifar100.SUPER_OF,
)

_SVHN = DataEntry(
    title="Street View House Numbers, cropped digits",
    terms="free for non-commercial use, cite the source",
    image_shape=(3, 32, 32),
    num_train=73_257,
    num_test=26_032,
    class_names=tuple("0123456789"),
    mean=None,
    std=None,
    augmentation=Augmentation(crop_padding=4),
    source="Y. Netzer et al. Reading Digits in Natural Images with Unsupervised Feature Learning, 2011",
    torchvision_name="SVHN",
    stem="svhn",
    torchvision_splits=_BY_SPLIT,
)

CATALOGUE: dict[str, DataEntry] = {
    "fashion-mini": replace(
        _FASHION,
        title="Fashion-MNIST, the first 1,000 training and 200 test images of each class",
        num_train=10_000,
        num_test=2_000,
        mean=(0.2867,),
        std=(0.3540,),
        torchvision_name=None,
        stem="fashion-mini",
    ),
    "fashion-mnist": _FASHION,
    "mnist": _MNIST,
    "hierarchical-digits": replace(
        _GENERATED,
        title="Hierarchical digits, generated from MNIST: a class is a grid of symbols, a symbol a patch of digits",
    ),
    "coloured-digits": replace(
        _GENERATED,
        title="Digits of MNIST on backgrounds of ten colours, which know nothing of the digit",
        image_shape=(3, 28, 28),
    ),
    "textured-digits": replace(_GENERATED, title="Digits of MNIST on ten textures, which know nothing of the digit"),
    "cifar10": DataEntry(
        title="CIFAR-10",
        terms="no formal licence; free for research, cite the source",
        image_shape=(3, 32, 32),
        num_train=50_000,
        num_test=10_000,
        class_names=(
            "airplane",
            "automobile",
            "bird",
            "cat",
            "deer",
            "dog",
            "frog",
            "horse",
            "ship",
            "truck",
        ),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        augmentation=Augmentation(crop_padding=4, flip=True),
        source="A. Krizhevsky. Learning Multiple Layers of Features from Tiny Images, 2009",
        torchvision_name="CIFAR10",
        stem="cifar10",
    ),
    "cifar100": _CIFAR100,
    "cifar100-super": replace(
        _CIFAR100,
        title="CIFAR-100, labelled by its 20 super-classes",
        class_names=cifar100.SUPER_NAMES,
        super_names=(),
        super_of=(),
        groups_of="cifar100",
    ),
    "svhn": _SVHN,
    "svhn-extra": replace(
        _SVHN,
        title="Street View House Numbers, with the extra training images",
        num_train=604_388,
        train_parts=("train", "extra"),
    ),
    "stl10": DataEntry(
        title="STL-10, its labelled images",
        terms="no formal licence; images from ImageNet, free for research, cite the source",
        image_shape=(3, 96, 96),
        num_train=5_000,
        num_test=8_000,
        class_names=("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
        mean=None,
        std=None,
        augmentation=Augmentation(crop_padding=4, flip=True),
        source="A. Coates, H. Lee, A. Ng. An Analysis of Single Layer Networks in Unsupervised Feature Learning, 2011",
        torchvision_name="STL10",
        stem="stl10",
        torchvision_splits=_BY_SPLIT,
    ),
}
