"""CIFAR-10 with ResNet-20, as in the paper: images padded by 4, cut out at random and mirrored (He et al., 2016).

    python examples/cifar10.py --backend cupy            # from XPNN_DATA or --data-dir
    python examples/cifar10.py --dataset digits --epochs 2    # the digits that come with xpnn, as 32×32 in colour

On a CPU an epoch takes minutes. Exit status 1 where the test accuracy is below --target-accuracy.
"""

import argparse
import sys

import numpy as np

import xpnn
from xpnn.layers import Normalize, Sequential

parser = argparse.ArgumentParser(description="Train ResNet-20 on CIFAR-10.")
parser.add_argument("--backend", default="auto", help="numpy, cupy, …")
parser.add_argument("--dataset", default="cifar10", choices=["cifar10", "digits"])
parser.add_argument("--data-dir", help="folder of CIFAR-10's binary files")
parser.add_argument("--epochs", type=int, default=60)
parser.add_argument("--batch-size", type=int, default=128)
parser.add_argument("--limit", type=int, help="train on the first N images only")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--target-accuracy", type=float, default=0.0)
args = parser.parse_args()


def in_colour(images):
    return images.repeat(4, axis=1).repeat(4, axis=2) * np.array([1.0, 0.8, 0.6], "float32")


dataset = xpnn.data.load(args.dataset, args.data_dir)
train, test = dataset.train_images[: args.limit], dataset.test_images
if args.dataset == "digits":
    train, test = in_colour(train), in_colour(test)

network = xpnn.models.get("resnet20", len(dataset.classes))
trainer = xpnn.Trainer(
    Sequential([Normalize.of(train), *network.layers]),  # part of the model: files and predictions carry it
    optimizer=xpnn.optim.SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-3),
    schedule=xpnn.optim.OneCycle(),
    backend=args.backend,
    seed=args.seed,
)
augment = xpnn.data.augment.recipe(args.dataset)
print(f"{trainer.model.layers[0]!r}, {augment!r} on {trainer.backend.name}, {len(train):,} images")


class Log(xpnn.Callback):
    def on_epoch(self, fit, record):
        print(f"epoch {record['epoch']}/{fit.epochs}: loss {record['loss']:.4f}, accuracy {record['accuracy']:.4f}")


labels = dataset.train_labels[: args.limit]
trainer.fit(train, labels, epochs=args.epochs, batch_size=args.batch_size, augment=augment, callbacks=[Log()])

accuracy = trainer.evaluate(test, dataset.test_labels)["accuracy"]
print(f"test accuracy {accuracy:.4f}")
if not accuracy >= args.target_accuracy:
    sys.exit(f"test accuracy {accuracy:.4f} is below the target {args.target_accuracy}")
