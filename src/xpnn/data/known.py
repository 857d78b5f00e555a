"""The data sets that can be downloaded: files and their sha256, mirrors, shapes, classes, source and licence.

The hashes are the published ones, so that no mirror need be trusted.
"""

from collections.abc import Mapping
from dataclasses import dataclass

DIGITS = tuple("0123456789")
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
CIFAR10 = "cifar-10-binary.tar.gz"


@dataclass(frozen=True)
class Known:
    """A public data set.

    Attributes:
        title: what its makers call it.
        files: each file, as it is downloaded, with its sha256.
        mirrors: addresses of folders with these files, in the order in which they are tried.
        shape: of an image, ``(H, W, C)``.
        classes: the name of each class, in the order of the labels.
        source: citation and licence, one line.
    """

    title: str
    files: Mapping[str, str]
    mirrors: tuple[str, ...]
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    source: str


KNOWN = {
    "mnist": Known(
        title="MNIST",
        files={
            TRAIN_IMAGES: "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            TRAIN_LABELS: "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            TEST_IMAGES: "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            TEST_LABELS: "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
        mirrors=(
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
        ),
        shape=(28, 28, 1),
        classes=DIGITS,
        source="Y. LeCun, C. Cortes and C. J. C. Burges, The MNIST database of handwritten digits, 1998, "
        "http://yann.lecun.com/exdb/mnist/ (CC BY-SA 3.0)",
    ),
    "fashion-mnist": Known(
        title="Fashion-MNIST",
        files={
            TRAIN_IMAGES: "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            TRAIN_LABELS: "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            TEST_IMAGES: "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            TEST_LABELS: "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
        mirrors=(
            "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        shape=(28, 28, 1),
        classes=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        source="H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine "
        "Learning Algorithms, 2017, https://github.com/zalandoresearch/fashion-mnist (MIT)",
    ),
    "kmnist": Known(
        title="KMNIST",
        files={
            TRAIN_IMAGES: "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
            TRAIN_LABELS: "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
            TEST_IMAGES: "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
            TEST_LABELS: "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
        },
        mirrors=("https://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
        shape=(28, 28, 1),
        classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        source="T. Clanuwat, M. Bober-Irizar, A. Kitamoto, A. Lamb, K. Yamamoto and D. Ha, Deep Learning for Classical "
        "Japanese Literature, 2018, https://codh.rois.ac.jp/kmnist/ (CC BY-SA 4.0)",
    ),
    "cifar10": Known(
        title="CIFAR-10",
        files={CIFAR10: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
        mirrors=("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/"),
        shape=(32, 32, 3),
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        source="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009, "
        "https://www.cs.toronto.edu/~kriz/cifar.html (no licence is stated)",
    ),
}
