"""One's own images: a folder with one sub-folder a class, and a network that tells the classes apart.

    python examples/own_images.py photos/                   # photos/cat/1.jpg, photos/dog/7.png, …
    python examples/own_images.py photos/ --image-size 96 --backend cupy
    python examples/own_images.py --made /tmp/shapes        # draws circles, squares and triangles the first time

About a fifth of the images is held out by a draw on their names. Exit status 1 where the accuracy on these is below
--target-accuracy.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

import xpnn
from xpnn.data.augment import Augment, Shift

parser = argparse.ArgumentParser(description="Train a small network on the images of a folder.")
parser.add_argument("folder", nargs="?", type=Path, help="one sub-folder a class")
parser.add_argument("--made", type=Path, metavar="DIR", help="draw images into this new folder, and train on them")
parser.add_argument("--image-size", type=int, help="bring images to N×N; default: their own size, or 64")
parser.add_argument("--skip-corrupt", action="store_true", help="leave out what cannot be read")
parser.add_argument("--backend", default="auto", help="numpy, cupy, …")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--target-accuracy", type=float, default=0.0)
args = parser.parse_args()


def draw_shapes(folder: Path, each: int = 120) -> None:
    """Circles, squares and triangles of any place, size and colour."""
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(0)
    for kind, corners in {"circle": 60, "square": 4, "triangle": 3}.items():
        (folder / kind).mkdir(parents=True)
        for i in range(each):
            ground, ink = (tuple(map(int, rng.integers(low, low + 90, 3))) for low in rng.permutation([0, 150]))
            image = Image.new("RGB", (32, 32), ground)
            x, y = rng.integers(12, 20, 2)
            shape = (int(x), int(y), int(rng.integers(6, 11)))
            ImageDraw.Draw(image).regular_polygon(shape, corners, rotation=int(rng.integers(0, 30)), fill=ink)
            image.save(folder / kind / f"{i}.png")


if (args.folder is None) == (args.made is None):
    parser.error("name a folder of images, or one to be --made")
if args.made and not args.made.exists():
    draw_shapes(args.made)

data = xpnn.data.load(args.folder or args.made, image_size=args.image_size, skip_corrupt=args.skip_corrupt)
print(f"{len(data.train_labels):,} images to train on, {len(data.test_labels):,} to test: {', '.join(data.classes)}")

trainer = xpnn.Trainer(
    xpnn.models.get("small-cnn", len(data.classes)),
    optimizer=xpnn.optim.AdamW(lr=2e-3),
    schedule=xpnn.optim.OneCycle(),
    backend=args.backend,
    seed=args.seed,
)
test = data.test_images, data.test_labels
fit = {"epochs": args.epochs, "batch_size": 32, "validation_data": test, "augment": Augment([Shift(2)])}
for record in trainer.fit(data.train_images, data.train_labels, **fit):
    print(f"epoch {record['epoch']}: loss {record['loss']:.4f}, accuracy {record['validation_accuracy']:.4f}")

accuracy = trainer.evaluate(*test)["accuracy"]
if not accuracy >= args.target_accuracy:
    sys.exit(f"test accuracy {accuracy:.4f} is below the target {args.target_accuracy}")
