"""Losses as a trainer uses them: which mean it is, its gradient, and what is left out of it."""

import numpy as np
import pytest
from training import CLASSES, IMAGES, LABELS, PLAIN, SHAPE, assert_same_tree, plain

from xpnn import Trainer, losses
from xpnn.backend import get
from xpnn.layers import Dense, Flatten, LogSoftmax, Sequential
from xpnn.losses import MSE, NLL, BinaryCrossEntropy, CrossEntropy, Huber
from xpnn.optim import SGD
from xpnn.random import Stream

IGNORED = -100
SOME = np.where(np.arange(20) % 4 == 1, IGNORED, LABELS)
"""The labels, a quarter of them ignored."""
WEIGHTS = (0.5, 2.0, 1.25)
TARGETS = Stream(0, "targets").uniform((20, CLASSES)).astype("float32")

CASES = {
    "plain": (CrossEntropy(), LABELS),
    "weights": (CrossEntropy(WEIGHTS), LABELS),
    "ignored": (CrossEntropy(ignored_label=IGNORED), SOME),
    "smoothing": (CrossEntropy(label_smoothing=0.2), LABELS),
    "all": (CrossEntropy(WEIGHTS, IGNORED, 0.2), SOME),
    "ignored class": (CrossEntropy(WEIGHTS, ignored_label=1), LABELS),
}


def softmax(scores):
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def by_hand(scores, labels, loss):
    """The mean and its gradient, sample by sample."""
    total, divisor, gradient = 0.0, 0.0, np.zeros_like(scores)
    weights = np.ones(CLASSES) if loss.class_weights is None else np.asarray(loss.class_weights)
    s = getattr(loss, "label_smoothing", 0.0)
    for i, label in enumerate(labels):
        if label == loss.ignored_label:
            continue
        p = softmax(scores[i])
        target = (1 - s) * np.eye(CLASSES)[label] + s / CLASSES
        total -= (target * weights * np.log(p)).sum()
        divisor += weights[label]
        gradient[i] = (target * weights).sum() * p - target * weights
    return total / divisor, gradient / divisor


def gradient_of(trainer, images, targets, **options):
    """What one step of plain descent moves the weights by."""
    before = trainer.weights
    trainer.fit(images, targets, batch_size=len(images), **options)
    return {path: before[path] - a for path, a in trainer.weights.items()}


@pytest.mark.parametrize("case", CASES)
def test_the_mean_and_its_gradient(case):
    loss, labels = CASES[case]
    trainer = Trainer(PLAIN, loss, SGD(1.0), backend="numpy", dtype="float64").build(SHAPE)
    scores = trainer.predict(IMAGES)
    mean, gradient = by_hand(scores, labels, loss)
    found = trainer.evaluate(IMAGES, labels)
    assert found["loss"] == pytest.approx(mean, rel=1e-12)
    kept = labels != loss.ignored_label
    assert found["accuracy"] == (scores.argmax(axis=1) == labels)[kept].mean()
    moved = gradient_of(trainer, IMAGES, labels)
    x = IMAGES.reshape(20, -1).astype("float64")
    np.testing.assert_allclose(moved["1.weight"], gradient.T @ x, rtol=0, atol=1e-13)
    np.testing.assert_allclose(moved["1.bias"], gradient.sum(axis=0), rtol=0, atol=1e-13)
    assert trainer.history[0]["loss"] == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_the_mean_is_pytorchs(case):
    torch = pytest.importorskip("torch")
    loss, labels = CASES[case]
    trainer = Trainer(PLAIN, loss, SGD(1.0), backend="numpy", dtype="float64").build(SHAPE)
    weight = torch.asarray(trainer.weights["1.weight"]).requires_grad_()
    options = {
        "weight": None if loss.class_weights is None else torch.asarray(loss.class_weights, dtype=torch.float64),
        "ignore_index": -1 if loss.ignored_label is None else loss.ignored_label,
        "label_smoothing": loss.label_smoothing,
    }
    scores = torch.asarray(IMAGES.reshape(20, -1)).double() @ weight.T
    mean = torch.nn.functional.cross_entropy(scores, torch.asarray(labels), **options)
    mean.backward()
    assert trainer.evaluate(IMAGES, labels)["loss"] == pytest.approx(mean.item(), rel=1e-12)
    moved = gradient_of(trainer, IMAGES, labels)
    np.testing.assert_allclose(moved["1.weight"], weight.grad.numpy(), rtol=0, atol=1e-13)


@pytest.mark.eager
@pytest.mark.parametrize("case", ["plain", "all"])
def test_the_mean_on_every_backend(backend, case):
    loss, labels = CASES[case]
    here, there = (Trainer(PLAIN, loss, SGD(1.0), backend=b) for b in (backend, get("numpy")))
    moved = [gradient_of(t.build(SHAPE), IMAGES, labels) for t in (here, there)]
    for path, a in moved[1].items():
        np.testing.assert_allclose(moved[0][path], a, rtol=0, atol=1e-6)
    assert here.history[0]["loss"] == pytest.approx(there.history[0]["loss"], rel=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_the_mean_over_batches_of_any_size(case):
    """Sums and divisors are added up; a mean of means would differ."""
    loss, labels = CASES[case]
    trainer = Trainer(PLAIN, loss, SGD(0.0), backend="numpy", dtype="float64").build(SHAPE)
    whole = trainer.evaluate(IMAGES, labels)
    for size in (20, 7, 3, 1):
        parts = trainer.evaluate(IMAGES, labels, batch_size=size)
        assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-12)
        assert parts["accuracy"] == whole["accuracy"]
        (record,) = trainer.fit(IMAGES, labels, batch_size=size)
        assert record["loss"] == pytest.approx(whole["loss"], rel=1e-12)
        assert record["accuracy"] == whole["accuracy"]


def test_repeated_data_have_the_same_gradient():
    """The gradient is that of the mean, so a learning rate does not depend on the batch size."""
    moved = []
    for times in (1, 5):
        trainer = plain(optimizer=SGD(1.0), dtype="float64").build(SHAPE)
        moved.append(gradient_of(trainer, np.repeat(IMAGES, times, axis=0), np.repeat(LABELS, times)))
    for path, a in moved[0].items():
        np.testing.assert_allclose(moved[1][path], a, rtol=0, atol=1e-14)


@pytest.mark.eager
def test_a_batch_of_ignored_labels_alone_moves_nothing(backend):
    trainer = Trainer(PLAIN, CrossEntropy(ignored_label=IGNORED), SGD(1.0), backend=backend).build(SHAPE)
    before = trainer.weights
    labels = np.full(20, IGNORED)
    (record,) = trainer.fit(IMAGES, labels)
    assert (record["loss"], record["accuracy"]) == (0.0, 0.0)
    assert_same_tree(trainer.weights, before)
    assert trainer.evaluate(IMAGES, labels) == {"loss": 0.0, "accuracy": 0.0}
    half = np.concatenate([labels[:10], LABELS[10:]])  # beside a batch that does count, the mean is that one's
    whole, part = trainer.evaluate(IMAGES, half, batch_size=10), trainer.evaluate(IMAGES[10:], LABELS[10:])
    assert whole == pytest.approx(part)


def test_nll_of_log_softmax_is_cross_entropy():
    model = Sequential([*PLAIN.layers, LogSoftmax()])
    for options in ((None, None), (WEIGHTS, IGNORED)):
        a = Trainer(model, NLL(*options), SGD(1.0), backend="numpy", dtype="float64").build(SHAPE)
        b = Trainer(PLAIN, CrossEntropy(*options), SGD(1.0), backend="numpy", dtype="float64").build(SHAPE)
        labels = LABELS if options[1] is None else SOME
        assert a.evaluate(IMAGES, labels) == pytest.approx(b.evaluate(IMAGES, labels), rel=1e-12)
        moved = [gradient_of(t, IMAGES, labels) for t in (a, b)]
        for path, grad in moved[1].items():
            np.testing.assert_allclose(moved[0][path], grad, rtol=0, atol=1e-13)


def test_labels_for_each_place():
    """Scores (N, 4, K) take labels (N, 4), and the mean is over all of them."""
    model = Dense(CLASSES)
    images = IMAGES.reshape(20, -1)[:, :20].reshape(20, 4, 5)
    labels = np.tile(LABELS[:, None], (1, 4))
    trainer = Trainer(model, backend="numpy", dtype="float64").build((4, 5))
    scores = trainer.predict(images)
    mean, _ = by_hand(scores.reshape(80, CLASSES), labels.ravel(), CrossEntropy())
    found = trainer.evaluate(images, labels, batch_size=7)
    assert found["loss"] == pytest.approx(mean, rel=1e-12)
    assert found["accuracy"] == (scores.argmax(axis=-1) == labels).mean()
    (record,) = trainer.fit(images, labels)
    assert record["accuracy"] == found["accuracy"]


NUMBERS = {
    "mse": (MSE(), lambda x, t: (x - t) ** 2, lambda x, t: 2 * (x - t)),
    "huber": (
        Huber(0.3),
        lambda x, t: np.where(np.abs(x - t) <= 0.3, (x - t) ** 2 / 2, 0.3 * (np.abs(x - t) - 0.15)),
        lambda x, t: np.clip(x - t, -0.3, 0.3),
    ),
    "binary": (
        BinaryCrossEntropy(),
        lambda x, t: -t * np.log(1 / (1 + np.exp(-x))) - (1 - t) * np.log(1 - 1 / (1 + np.exp(-x))),
        lambda x, t: 1 / (1 + np.exp(-x)) - t,
    ),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_losses_of_numbers(case):
    loss, formula, slope = NUMBERS[case]
    trainer = Trainer(PLAIN, loss, SGD(1.0), backend="numpy", dtype="float64").build(SHAPE)
    scores = trainer.predict(IMAGES)
    found = trainer.evaluate(IMAGES, TARGETS, batch_size=7)
    assert found["loss"] == pytest.approx(formula(scores, TARGETS).mean(), rel=1e-12)
    moved = gradient_of(trainer, IMAGES, TARGETS)
    d = slope(scores, TARGETS) / TARGETS.size
    np.testing.assert_allclose(moved["1.weight"], d.T @ IMAGES.reshape(20, -1).astype("float64"), rtol=0, atol=1e-13)
    if case == "binary":
        assert found["accuracy"] == ((scores > 0) == (TARGETS > 0.5)).mean()
    else:
        assert "accuracy" not in found


@pytest.mark.parametrize("name", losses.LOSSES)
def test_losses_by_name(name):
    assert losses.get(name) == losses.LOSSES[name]()
    assert losses.get(losses.LOSSES[name]()) == losses.LOSSES[name]()


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (CrossEntropy, {"label_smoothing": 1.0}, r"cross_entropy: label_smoothing=1\.0; expected 0 ≤ s < 1"),
        (CrossEntropy, {"label_smoothing": -0.1}, "label_smoothing"),
        (CrossEntropy, {"class_weights": (1.0, -1.0)}, r"class_weights=\(1\.0, -1\.0\); expected numbers ≥ 0"),
        (NLL, {"class_weights": (float("nan"),)}, r"nll: class_weights=\(nan,\); expected numbers ≥ 0"),
        (Huber, {"delta": 0.0}, r"huber: delta=0\.0; expected a number above 0"),
    ],
)
def test_numbers_that_make_no_sense(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_class_weights_may_come_as_an_array():
    assert CrossEntropy(np.array([1, 2, 3])) == CrossEntropy([1, 2, 3]) == CrossEntropy((1.0, 2.0, 3.0))


def test_large_scores_do_not_overflow():
    """Logits of ±1e4 are far beyond what `exp` can hold."""
    model = Sequential([Flatten(), Dense(2)])
    trainer = Trainer(model, backend="numpy").build((1,))
    host = trainer.host_state()
    host["weights"] = {"1.weight": np.array([[1e4], [-1e4]], "float32"), "1.bias": np.zeros(2, "float32")}
    trainer.restore((1,), host)
    found = trainer.evaluate(np.array([[1.0], [-1.0]], "float32"), np.array([0, 0]))
    assert found == {"loss": 1e4, "accuracy": 0.5}


def test_probabilities_of_large_scores():
    np.testing.assert_allclose(losses.probabilities([[1000.0, 1000.0], [-1000.0, 0.0]]), [[0.5, 0.5], [0, 1]])
    np.testing.assert_allclose(losses.probabilities(np.log([0.2, 0.8])), [0.2, 0.8])
