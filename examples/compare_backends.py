"""Do two backends train the same network? One step judged layer by layer, then a whole training on each.

    python examples/compare_backends.py --backend numpy cupy
    python examples/compare_backends.py --backend numpy torch --model small-cnn --dataset mnist

Rounding makes no two backends equal, and training enlarges rounding: so a single step is held to a bound that follows
from the sums in it (`xpnn.parity`), and of the trainings only accuracies are compared. Exit status 1 where a layer is
off, or an accuracy below --target-accuracy.
"""

import argparse
import sys

import xpnn
from xpnn.parity import compare_network

parser = argparse.ArgumentParser(description="Train one network on two backends and compare.")
parser.add_argument("--backend", nargs=2, default=["numpy", "strict"], metavar=("A", "B"), help="numpy, cupy, torch, …")
parser.add_argument("--dataset", default="digits", help="digits, mnist, …")
parser.add_argument("--data-dir", help="folder of the set's files")
parser.add_argument("--model", default="tiny-cnn", choices=xpnn.models.MODELS)
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--limit", type=int, help="train on the first N images only")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--target-accuracy", type=float, default=0.0)
args = parser.parse_args()

data = xpnn.data.load(args.dataset, args.data_dir)
images, labels = data.train_images[: args.limit], data.train_labels[: args.limit]
model = xpnn.models.get(args.model, len(data.classes))

report = compare_network(model, args.backend, images[:32], labels[:32], seed=args.seed)
print(*report.lines(), sep="\n")

accuracies = []
for name in args.backend:
    trainer = xpnn.Trainer(model, schedule=xpnn.optim.OneCycle(), backend=name, seed=args.seed)
    trainer.fit(images, labels, epochs=args.epochs, batch_size=32)
    accuracies.append(trainer.evaluate(data.test_images, data.test_labels)["accuracy"])
    speed = trainer.history[-1]["images_per_second"]
    print(f"{name}: test accuracy {accuracies[-1]:.4f}, {speed:,.0f} images/s")

if not report.passed:
    sys.exit("the backends do not compute the same: see above")
if not min(accuracies) >= args.target_accuracy:
    sys.exit(f"test accuracy {min(accuracies):.4f} is below the target {args.target_accuracy}")
