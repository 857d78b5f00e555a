"""MNIST to 99.5 % and beyond: the network deep-cnn on images that are turned, scaled, sheared and moved.

    python examples/mnist.py                        # MNIST, from XPNN_DATA or --data-dir
    python examples/mnist.py --backend cupy
    python examples/mnist.py --dataset digits       # the digits that come with xpnn, blown up to 28×28

Exit status 1 where the test accuracy is below --target-accuracy.
"""

import argparse
import sys

import numpy as np

import xpnn

parser = argparse.ArgumentParser(description="Train deep-cnn with augmentation, and test it once at the end.")
parser.add_argument("--backend", default="auto", help="numpy, cupy, …")
parser.add_argument("--dataset", default="mnist", choices=["mnist", "digits"])
parser.add_argument("--data-dir", help="folder of the four MNIST files")
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--limit", type=int, help="train on the first N images only")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--target-accuracy", type=float, default=0.995)
args = parser.parse_args()


def as_large_as_mnist(images):
    return np.pad(images.repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2), (0, 0)))


dataset = xpnn.data.load(args.dataset, args.data_dir)
train, test = dataset.train_images[: args.limit], dataset.test_images
if args.dataset == "digits":
    train, test = as_large_as_mnist(train), as_large_as_mnist(test)

trainer = xpnn.Trainer(
    xpnn.models.get("deep-cnn"),
    loss=xpnn.losses.CrossEntropy(label_smoothing=0.05),
    optimizer=xpnn.optim.SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-3),
    schedule=xpnn.optim.OneCycle(),
    backend=args.backend,
    seed=args.seed,
)
augment = xpnn.data.augment.recipe("mnist")  # other pictures in every epoch, and the same ones on every backend
print(f"{augment!r} on {trainer.backend.name}, {len(train):,} images")


class Log(xpnn.Callback):
    def on_epoch(self, fit, record):
        print(f"epoch {record['epoch']}/{fit.epochs}: loss {record['loss']:.4f}, accuracy {record['accuracy']:.4f}")


trainer.fit(train, dataset.train_labels[: args.limit], epochs=args.epochs, augment=augment, callbacks=[Log()])

accuracy = trainer.evaluate(test, dataset.test_labels)["accuracy"]
seconds = sum(record["seconds"] for record in trainer.history)
print(f"test accuracy {accuracy:.4f} after {args.epochs} epochs in {seconds:.0f} s")
if not accuracy >= args.target_accuracy:
    sys.exit(f"test accuracy {accuracy:.4f} is below the target {args.target_accuracy}")
