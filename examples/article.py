"""The tutorial's network, trained twice: with its own loops, one patch at a time, and with xpnn.

    python examples/article.py                      # MNIST, from XPNN_DATA or --data-dir
    python examples/article.py --backend cupy
    python examples/article.py --dataset digits     # the digits that come with xpnn
    python examples/article.py --figures figures    # draws the tutorial's two figures as well (matplotlib)

Conv 16 of 3×3, max-pool 2, dense 10. Exit status 1 where the test accuracy is below --target-accuracy.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

import xpnn

parser = argparse.ArgumentParser(description="Train the article's network, and compare speeds with its loops.")
parser.add_argument("--backend", default="auto", help="numpy, cupy, …")
parser.add_argument("--dataset", default="mnist", choices=["mnist", "digits"])
parser.add_argument("--data-dir", help="folder of the four MNIST files")
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--limit", type=int, help="train on the first N images only")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--naive-images", type=int, default=100, help="how many images the loops are timed on")
parser.add_argument("--figures", type=Path, metavar="DIR", help="draw the tutorial's figures into this folder")
parser.add_argument("--target-accuracy", type=float, default=0.0)
args = parser.parse_args()

dataset = xpnn.data.load(args.dataset, args.data_dir)
images, labels = dataset.train_images[: args.limit], dataset.train_labels[: args.limit]


def draw(name, pictures):
    """Some pictures with titles side by side, in one file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(pictures), 3.6), layout="constrained")
    for axes, (title, picture) in zip(figure.subplots(1, len(pictures)), pictures.items(), strict=True):
        axes.imshow(picture, cmap="gray")
        axes.set(title=title, xticks=[], yticks=[])
    args.figures.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.figures / name, dpi=120)


if args.figures:
    backend = xpnn.backend.get(args.backend)
    digit = backend.asarray(images[:1])

    def convolved(kernels):  # (C_out, 3, 3) → (H-2, W-2, C_out)
        return backend.to_numpy(backend.ops.conv(digit, backend.asarray(kernels[..., None], "float32"))[0])[0]

    # What 32 random kernels make of a digit, as in the tutorial: 28×28 becomes 26×26.
    maps = convolved(np.random.default_rng(args.seed).normal(size=(32, 3, 3)) / 9)
    size = f"{maps.shape[0]}×{maps.shape[1]}"
    draw("feature_map.png", {f"a {labels[0]}": images[0, ..., 0], f"the first of 32 maps, {size}": maps[..., 0]})
    # What kernels that somebody thought of do: each sees the edges of one direction (Prewitt, 1970).
    vertical = np.asarray([[-1, 0, 1]] * 3)
    edges = convolved(np.stack([vertical, vertical.T]))
    draw("edges.png", {
        "vertical edges": vertical, "its effect": edges[..., 0],
        "horizontal edges": vertical.T, "its effect ": edges[..., 1],
    })  # fmt: skip

# The loops of the article: one image at a time, a step of plain gradient descent after each.
loops = xpnn.naive.article(np.random.default_rng(args.seed), images.shape[1:])
begun = time.perf_counter()
loops.train(images[: args.naive_images], labels[: args.naive_images], epochs=1, lr=0.005)
naive_speed = len(images[: args.naive_images]) / (time.perf_counter() - begun)

# The same network here. A little label smoothing and many small steps help where there are few images.
trainer = xpnn.Trainer(
    xpnn.models.get("article"),
    loss=xpnn.losses.CrossEntropy(label_smoothing=0.05),
    optimizer=xpnn.optim.SGD(lr=0.08, momentum=0.9, nesterov=True),
    schedule=xpnn.optim.OneCycle(),
    backend=args.backend,
    seed=args.seed,
)
print(f"{trainer.model!r} on {trainer.backend.name}, {len(labels):,} images")
for record in trainer.fit(images, labels, epochs=args.epochs, batch_size=32):
    print(f"epoch {record['epoch']}: loss {record['loss']:.4f}, accuracy {record['accuracy']:.4f}")
speed = np.median([r["images_per_second"] for r in trainer.history])

train = trainer.evaluate(images, labels)["accuracy"]
test = trainer.evaluate(dataset.test_images, dataset.test_labels)["accuracy"]
print(f"train accuracy {train:.4f}, test accuracy {test:.4f}")
print(
    f"images trained a second: {naive_speed:,.0f} by the loops, {speed:,.0f} by xpnn: {speed / naive_speed:,.0f} times"
)
if not test >= args.target_accuracy:
    sys.exit(f"test accuracy {test:.4f} is below the target {args.target_accuracy}")
