"""What a training run looks like: its pictures, and one page with all of them."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpnn.data import Dataset
from xpnn.layers import BatchNorm, Dropout, Layer
from xpnn.layers.conv import Conv
from xpnn.layers.summary import summarise
from xpnn.losses import probabilities
from xpnn.page import facts, page
from xpnn.pictures import figures
from xpnn.pictures.feature_maps import feature_maps
from xpnn.train import Trainer

BATCH = 256
WORST = 16
LAYERS = 8
"""How many layers' feature maps are drawn."""

_STYLE = "figure img { background: #fff; border-radius: 6px; } .result { font-size: 1.15rem; }"


@dataclass(frozen=True)
class Answers:
    """What a network says of labelled images.

    Attributes:
        counts: `(K, K)`; row: what it was, column: what was said.
        worst: the indices of the wrong answers by their loss, the largest first, at most `WORST`.
        said: for each of these the label that was said and its probability.
    """

    counts: NDArray[np.int64]
    worst: list[int]
    said: list[tuple[int, float]]


def answers(trainer: Trainer, images: Any, labels: NDArray[np.int64], classes: int) -> Answers:
    """Go through images batch by batch, so that they may be more than fit into memory."""
    counts = np.zeros((classes, classes), np.int64)
    wrong: list[tuple[float, int, int, float]] = []
    for start in range(0, len(labels), BATCH):
        shares, true = probabilities(trainer.predict(images[start : start + BATCH])), labels[start : start + BATCH]
        said = shares.argmax(axis=1)
        np.add.at(counts, (true, said), 1)
        for i in np.flatnonzero(said != true):
            wrong.append((float(shares[i, true[i]]), start + int(i), int(said[i]), float(shares[i, said[i]])))
        wrong = sorted(wrong)[:WORST]
    return Answers(counts, [w[1] for w in wrong], [w[2:] for w in wrong])


def write(
    folder: Path,
    trainer: Trainer,
    dataset: Dataset,
    history: Sequence[dict[str, Any]],
    summary: Mapping[str, Any],
    config: Mapping[str, Any],
) -> list[Path]:
    """Draw a run into `folder`: `pictures/*.png` and `report.html`.

    Args:
        folder: of the run.
        trainer: with the weights that are looked at.
        dataset: its test images are.
        history: the records of its epochs.
        summary, config: what is known of the run, for the page.

    Returns:
        The files.

    Raises:
        ImportError: matplotlib is not installed.
    """
    drawn = _figures(trainer, dataset, history, "validation" if config.get("validation") else "test")
    (folder / "pictures").mkdir(exist_ok=True)
    files, parts = [], [_head(dataset, summary)]
    if len(trainer.history) < len(history):
        came = f"after epoch {len(trainer.history)} of {len(history)}"
        parts.append(f'<p class="note">That is the result of the last epoch; the pictures show the network {came}.</p>')
    for name, (title, text, figure) in drawn.items():
        png = BytesIO()
        figure.savefig(png, format="png")
        files.append(folder / "pictures" / f"{name}.png")
        files[-1].write_bytes(png.getvalue())
        source = f"data:image/png;base64,{b64encode(png.getvalue()).decode()}"
        parts.append(
            f'<h2>{escape(title)}</h2>\n<figure><img src="{source}" alt="{escape(title)}">'
            f"<figcaption>{escape(text)}</figcaption></figure>"
        )
    parts.append(f"<h2>The network</h2>\n{_network(trainer)}")
    backend = dict(summary["backend"])
    parts += ["<h2>The run was begun with</h2>", facts({"": config})]
    parts += ["<h2>It ran on</h2>", facts({"": {**summary["versions"], "backend": backend.pop("name"), **backend}})]
    parts.append(f'<p class="note">{escape(dataset.source)}</p>')
    files.append(folder / "report.html")
    files[-1].write_text(page(f"{summary['model']} on {dataset.name}", parts, _STYLE), encoding="utf-8")
    return files


def _figures(
    trainer: Trainer, dataset: Dataset, history: Sequence[dict[str, Any]], held_out: str
) -> dict[str, tuple[str, str, figures.Figure]]:
    """Name of the file → title, text and figure."""
    images, labels = dataset.test_images, dataset.test_labels
    classes = [figures.label(name) for name in dataset.classes]
    found = answers(trainer, images, labels, len(classes))
    drawn = {
        "curves": ("Training", "Mean loss and accuracy of each epoch.", figures.curves(history, held_out)),
        "confusion": (
            "What was taken for what",
            "Test images by class; the shade is the share of the row.",
            figures.confusion(found.counts, classes),
        ),
    }
    if found.worst:
        gap = "\n" if max(map(len, classes)) > 8 else " "
        titles = [
            f"said {classes[said]}{gap}({share:.0%})\nis {classes[labels[i]]}"
            for i, (said, share) in zip(found.worst, found.said, strict=True)
        ]
        drawn["mistakes"] = (
            "The worst mistakes",
            f"The {len(titles)} wrong answers with the largest loss: what was said, and what is true.",
            figures.mistakes(np.concatenate([images[i : i + 1] for i in found.worst]), titles),
        )
    image = images[:1][0]
    seen = [(path, layer, y) for path, layer, y in feature_maps(trainer, image) if y.ndim == 3]
    first = next(((path, layer) for path, layer, _ in seen if isinstance(layer, Conv)), None)
    if first:
        path, layer = first
        drawn["kernels"] = (
            "The kernels of the first convolution",
            "What each of them looks for.",
            figures.kernels(trainer.weights[f"{path}.weight" if path else "weight"], repr(layer)),
        )
    shown = _some([s for s in seen if not isinstance(s[1], BatchNorm | Dropout)])
    if shown:
        drawn["feature_maps"] = (
            "What the layers see",
            f"A test image and what {len(shown)} of the {len(seen)} layers before the first flat one make of it: "
            f"at most {figures.AT_ONCE} channels of each, the larger the brighter, one scale a layer.",
            figures.maps(image, shown, f"a test image: {classes[labels[0]]}"),
        )
    return drawn


def _some(seen: list[tuple[str, Layer, Any]]) -> list[tuple[str, Layer, Any]]:
    """At most `LAYERS` of them, the first and the last among them."""
    return [seen[i] for i in np.linspace(0, len(seen) - 1, min(len(seen), LAYERS)).round().astype(int)]


def _head(dataset: Dataset, summary: Mapping[str, Any]) -> str:
    backend = summary["backend"]
    return (
        f"<h1>{escape(summary['model'])} on {escape(dataset.name)}</h1>\n"
        f'<p class="result"><b>{summary["test_accuracy"]:.2%}</b> of {len(dataset.test_labels):,} test images right '
        f"(loss {summary['test_loss']:.4f}), {summary['train_accuracy']:.2%} of those it was trained on.</p>\n"
        f"<p>{summary['parameters']:,} parameters, {summary['seconds']:,.1f} s of training, "
        f"{summary['images_per_second']:,.0f} images/s on {escape(backend['name'])}, "
        f"device {escape(backend['device'])}.</p>"
    )


def _network(trainer: Trainer) -> str:
    table = f"<pre>{escape(str(summarise(trainer.model, trainer.in_shape or ())))}</pre>"
    return (
        f"{table}\n<details><summary>The code that makes it</summary><pre>{escape(repr(trainer.model))}</pre></details>"
    )
