"""Ten steps of each optimizer against its formula, written down once more, and against PyTorch's."""

from functools import partial

import numpy as np
import pytest
from training import IMAGES, LABELS, PLAIN, SHAPE, recorded

import xpnn
from xpnn import Trainer
from xpnn.backend import get
from xpnn.optim import OPTIMIZERS, SGD, Adam, AdamW, Optimizer, RMSprop
from xpnn.random import Stream

STEPS, SIZE = 10, 7
START = Stream(0, "start").normal((SIZE,))
GRADIENTS = Stream(0, "gradients").normal((STEPS, SIZE)) * np.array([1e-3, 0.1, 1, 1, 1, 3, 0])
RATES = [0.1 / (1 + i) for i in range(STEPS)]
"""Another one at each step, as a schedule would have it."""


def walk(optimizer, backend, dtype="float64", gradients=GRADIENTS, start=START):
    """The weights after each step."""
    weights = backend.asarray(start, dtype)
    moments = {name: backend.asarray(np.zeros(start.shape), dtype) for name in optimizer.moments}
    rows = []
    for i, (g, lr) in enumerate(zip(gradients, RATES, strict=True)):
        scalars = backend.asarray(np.asarray(optimizer.scalars(lr, i + 1)), dtype)
        gradient = optimizer.clip(backend.ops, backend.asarray(g, dtype))
        weights, moments = optimizer.update(backend.ops, weights, gradient, moments, scalars)
        assert moments.keys() == set(optimizer.moments)
        assert all(a.dtype == weights.dtype for a in moments.values())
        rows.append(np.array(backend.to_numpy(weights)))
    assert rows[-1].dtype == dtype
    return np.stack(rows)


# The formulas: `w` after each step for gradients `g` and learning rates `RATES`


def sgd(w, g, momentum=0.0, nesterov=False, weight_decay=0.0):
    v, rows = 0.0, []
    for gradient, lr in zip(g, RATES, strict=True):
        v = momentum * v + gradient
        w = w - lr * weight_decay * w - lr * (gradient + momentum * v if nesterov else v)
        rows.append(w)
    return np.stack(rows)


def rmsprop(w, g, smoothing=0.99, epsilon=1e-8):
    s, rows = 0.0, []
    for gradient, lr in zip(g, RATES, strict=True):
        s = smoothing * s + (1 - smoothing) * gradient**2
        w = w - lr * gradient / (np.sqrt(s) + epsilon)
        rows.append(w)
    return np.stack(rows)


def adam(w, g, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0):
    m, v, rows = 0.0, 0.0, []
    for t, (gradient, lr) in enumerate(zip(g, RATES, strict=True), 1):
        m = beta1 * m + (1 - beta1) * gradient
        v = beta2 * v + (1 - beta2) * gradient**2
        w = w - lr * weight_decay * w - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + epsilon)
        rows.append(w)
    return np.stack(rows)


CASES = {
    "sgd": (SGD(1.0), sgd, "SGD", {}),
    "momentum": (SGD(1.0, momentum=0.9), sgd, "SGD", {"momentum": 0.9}),
    "nesterov": (SGD(1.0, momentum=0.8, nesterov=True), sgd, "SGD", {"momentum": 0.8, "nesterov": True}),
    "decay": (SGD(1.0, momentum=0.9, weight_decay=0.1), sgd, None, {"momentum": 0.9, "weight_decay": 0.1}),
    "rmsprop": (RMSprop(), rmsprop, "RMSprop", {}),
    "rmsprop options": (RMSprop(smoothing=0.5, epsilon=0.1), rmsprop, "RMSprop", {"smoothing": 0.5, "epsilon": 0.1}),
    "adam": (Adam(), adam, "Adam", {}),
    "adam options": (
        Adam(beta1=0.5, beta2=0.8, epsilon=0.1), adam, "Adam", {"beta1": 0.5, "beta2": 0.8, "epsilon": 0.1},
    ),
    "adamw": (AdamW(), adam, "AdamW", {"weight_decay": 0.01}),
    "adamw options": (AdamW(weight_decay=0.3, beta1=0.5), adam, "AdamW", {"weight_decay": 0.3, "beta1": 0.5}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_formula(variant, backend, case):
    optimizer, formula, _, options = CASES[case]
    expected = formula(START, GRADIENTS, **options)
    for dtype, tolerance in (("float32", 3e-6), ("float64", 1e-14)):
        if dtype in variant.dtypes:
            found = walk(optimizer, backend, dtype)
            np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("case", [name for name, (_, _, torch_name, _) in CASES.items() if torch_name])
def test_pytorch(case):
    torch = pytest.importorskip("torch")
    optimizer, _, name, options = CASES[case]
    names = {"smoothing": "alpha", "epsilon": "eps"}
    theirs = {names.get(k, k): v for k, v in options.items() if not k.startswith("beta")}
    if isinstance(optimizer, Adam):
        theirs["betas"] = (optimizer.beta1, optimizer.beta2)
    weights = torch.asarray(START.copy()).requires_grad_()
    other = getattr(torch.optim, name)([weights], lr=1.0, **theirs)
    rows = []
    for g, lr in zip(GRADIENTS, RATES, strict=True):
        weights.grad, other.param_groups[0]["lr"] = torch.asarray(g), lr
        other.step()
        rows.append(weights.detach().numpy().copy())
    np.testing.assert_allclose(walk(optimizer, get("numpy")), np.stack(rows), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("make", [SGD, partial(SGD, momentum=0.9), AdamW], ids=["sgd", "momentum", "adamw"])
def test_weight_decay_is_applied_once(make):
    """Without a gradient it is all that moves the weights; it runs through no moment."""
    found = walk(make(1.0, weight_decay=0.25), get("numpy"), gradients=np.zeros((STEPS, SIZE)))
    expected = START * np.cumprod([1 - 0.25 * lr for lr in RATES])[:, None]
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_adam_has_no_weight_decay():
    with pytest.raises(TypeError, match="weight_decay"):
        Adam(0.1, weight_decay=0.1)


@pytest.mark.parametrize("limit", [0.5, 2.0, 100.0])
def test_clipping(variant, backend, limit):
    found = walk(SGD(1.0, clip_norm=limit), backend, variant.dtypes[-1])
    norms = np.linalg.norm(GRADIENTS, axis=1, keepdims=True)
    assert (norms > limit).any() == (limit < 100)
    scaled = GRADIENTS * np.minimum(1, limit / (norms + 1e-6))
    tolerance = 1e-12 if variant.dtypes[-1] == "float64" else 3e-6
    np.testing.assert_allclose(found, sgd(START, scaled), rtol=0, atol=tolerance)


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_clipping_is_pytorchs(limit):
    torch = pytest.importorskip("torch")
    backend, optimizer = get("numpy"), SGD(1.0, clip_norm=limit)
    for g in GRADIENTS:
        parts = [torch.zeros(3, dtype=torch.float64), torch.zeros(SIZE - 3, dtype=torch.float64)]
        parts[0].grad, parts[1].grad = torch.asarray(g[:3].copy()), torch.asarray(g[3:].copy())
        torch.nn.utils.clip_grad_norm_(parts, limit)  # the norm is that of all gradients together
        expected = np.concatenate([p.grad.numpy() for p in parts])
        np.testing.assert_allclose(optimizer.clip(backend.ops, g), expected, rtol=1e-12)


def test_a_trainer_clips_the_norm_over_all_weights():
    moved = {}
    for limit in (None, 0.01):
        trainer = Trainer(PLAIN, optimizer=SGD(1.0, clip_norm=limit), backend="numpy", dtype="float64").build(SHAPE)
        before = trainer.weights
        trainer.fit(IMAGES, LABELS)
        moved[limit] = {p: a - before[p] for p, a in trainer.weights.items()}
    norm = np.sqrt(sum((a**2).sum() for a in moved[None].values()))
    assert norm > 0.02
    for path, a in moved[0.01].items():
        np.testing.assert_allclose(a, moved[None][path] * 0.01 / norm, rtol=1e-3)


@pytest.mark.parametrize("optimizer", [SGD(0.1, momentum=0.9), RMSprop(), Adam(), AdamW()], ids=repr)
def test_update_writes_to_nothing(optimizer):
    backend = get("numpy")
    given = {"weights": START.copy(), "gradient": GRADIENTS[0].copy()}
    given |= {name: np.full(SIZE, 0.5) for name in optimizer.moments}
    for a in given.values():
        a.flags.writeable = False
    moments = {name: given[name] for name in optimizer.moments}
    scalars = np.asarray(optimizer.scalars(0.1, 1))
    optimizer.update(backend.ops, given["weights"], given["gradient"], moments, scalars)


def test_the_first_step_of_adam_has_the_size_of_the_learning_rate():
    """So it is with the correction of moments that began at zero, and with the step counted from 1."""
    moved = walk(Adam(), get("numpy"))[0] - START
    np.testing.assert_allclose(np.abs(moved[:-1]), RATES[0], rtol=1e-4)
    assert moved[-1] == 0


def test_adam_corrects_by_the_trainers_step():
    trainer = Trainer(PLAIN, optimizer=Adam(0.1, beta1=0.9, beta2=0.99), backend="numpy").build(SHAPE)
    with recorded(trainer) as seen:
        trainer.fit(IMAGES, LABELS, batch_size=10)
        trainer.fit(IMAGES, LABELS, batch_size=20)  # the count goes on
    for step, (*_, scalars) in enumerate(seen, 1):
        expected = [1 / (10, 10, 20)[step - 1], 0.1, 0.1 / (1 - 0.9**step), 1 / np.sqrt(1 - 0.99**step)]
        np.testing.assert_allclose(scalars, expected, rtol=1e-6)
    assert len(seen) == 3


def test_corrections_are_worked_out_in_float64():
    """In float32, 1 - 0.999¹ has lost four digits."""
    scalars = Trainer(PLAIN, optimizer=Adam(), backend="numpy").build(SHAPE).executor.scalars(1, 1.0, 1)
    assert scalars.dtype == np.float32
    assert scalars[3] == np.float32(1 / np.sqrt(0.001))


@pytest.mark.parametrize("optimizer", [SGD(0.1), SGD(0.1, momentum=0.9), RMSprop(), Adam(), AdamW()], ids=repr)
def test_it_trains(optimizer):
    trainer = Trainer(PLAIN, optimizer=optimizer, backend="numpy")
    records = trainer.fit(IMAGES, LABELS, batch_size=5, epochs=5)
    assert records[-1]["loss"] < records[0]["loss"]


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (SGD, {"lr": -0.1}, r"SGD: lr=-0\.1; expected a number ≥ 0$"),
        (SGD, {"lr": float("nan")}, "SGD: lr=nan; expected"),
        (SGD, {"lr": float("inf")}, "SGD: lr=inf; expected"),
        (SGD, {"lr": "0.1"}, r"SGD: lr='0\.1'; expected"),
        (SGD, {"lr": 0.1, "clip_norm": -1}, "SGD: clip_norm=-1; expected"),
        (SGD, {"lr": 0.1, "momentum": 1.0}, r"SGD: momentum=1\.0; expected a number ≥ 0 and below 1"),
        (SGD, {"lr": 0.1, "weight_decay": -1}, "SGD: weight_decay=-1"),
        (SGD, {"lr": 0.1, "nesterov": True}, "nesterov=True without momentum changes nothing; give one"),
        (RMSprop, {"smoothing": 1}, "RMSprop: smoothing=1; expected a number ≥ 0 and below 1"),
        (RMSprop, {"epsilon": -1}, "RMSprop: epsilon=-1"),
        (Adam, {"beta1": 1.5}, r"Adam: beta1=1\.5; expected a number ≥ 0 and below 1"),
        (Adam, {"beta2": -0.1}, r"Adam: beta2=-0\.1"),
        (AdamW, {"weight_decay": None}, "AdamW: weight_decay=None"),
    ],
)
def test_numbers_that_make_no_sense(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_the_learning_rate_alone_is_given_by_place():
    """`SGD(0.05, 0.9)` is PyTorch's momentum; here it must not become something else in silence."""
    for cls in OPTIMIZERS.values():
        assert cls(0.5).lr == 0.5
        with pytest.raises(TypeError, match="positional"):
            cls(0.5, 0.9)


def test_an_optimizer_of_ones_own():
    class Signs(Optimizer):
        def update(self, ops, weights, gradient, moments, scalars):
            return weights - scalars[0] * np.sign(gradient), {}

    trainer = Trainer(PLAIN, optimizer=Signs(0.5), backend="numpy").build(SHAPE)
    before = trainer.weights
    trainer.fit(IMAGES, LABELS)
    np.testing.assert_allclose(np.abs(trainer.weights["1.weight"] - before["1.weight"]), 0.5, rtol=1e-5)
    with pytest.raises(ValueError, match="is not one of xpnn's own, so a file cannot describe it; use save_weights"):
        trainer.save("never.safetensors")
    assert xpnn.optim.OPTIMIZERS.keys() == {"SGD", "RMSprop", "Adam", "AdamW"}
