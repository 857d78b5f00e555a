"""What an executor promises a trainer, whichever backend brings it."""

import numpy as np
import pytest

from xpnn import losses
from xpnn.conformance.networks import ADAM, CLASSES, IMAGES, LABELS, NET, PLAIN, SHAPE, assert_same_tree
from xpnn.layers import Dense, Dropout, Flatten, Sequential
from xpnn.optim import SGD
from xpnn.random import Stream

N = 10
LOSS = losses.CrossEntropy()
MASKED = Sequential([Flatten(), Dropout(0.5), Dense(CLASSES)])


def made(backend, model=PLAIN, optimizer=SGD(1.0), loss=LOSS):  # noqa: B008 (it is frozen)
    executor = backend.executor(model, loss, optimizer, SHAPE, "float32")
    weights, stats = model.init(SHAPE, Stream(0, "weights"))
    return executor, executor.load({"weights": weights, "stats": stats, "moments": {}})


def step(backend, executor, state, *, images=IMAGES[:N], labels=LABELS[:N], masks=None, divisor=N, lr=1.0, number=1):
    draws = {path: backend.asarray(mask) for path, mask in (masks or {}).items()}
    scalars = executor.scalars(divisor, lr, number)
    state, metrics = executor.step(state, backend.asarray(images), backend.asarray(labels), draws, scalars)
    return state, np.array(backend.to_numpy(metrics))


def by_hand(weights, images=IMAGES[:N], labels=LABELS[:N]):
    """Loss and gradient of `PLAIN` in float64."""
    x = images.reshape(len(images), -1).astype("float64")
    scores = x @ weights["1.weight"].T.astype("float64") + weights["1.bias"]
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    d = (p - np.eye(CLASSES)[labels]) / len(images)
    loss = -np.log(p[range(len(images)), labels]).sum()
    return loss, int((scores.argmax(axis=1) == labels).sum()), {"1.weight": d.T @ x, "1.bias": d.sum(axis=0)}


def test_a_state_goes_there_and_back(backend):
    executor, _ = made(backend, NET, ADAM)
    weights, stats = NET.init(SHAPE, Stream(1, "weights"))
    host = {
        "weights": {p: a.astype("float32") for p, a in weights.items()},
        "stats": {p: (a + 2).astype("float32") for p, a in stats.items()},
        "moments": {
            m: {p: Stream(i, "m", p).uniform(a.shape).astype("float32") for p, a in weights.items()}
            for i, m in enumerate(("mean", "square"))
        },
    }
    found = executor.save(executor.load(host))
    assert_same_tree(found, host)
    assert all(type(a) is np.ndarray for kind in ("weights", "stats") for a in found[kind].values())
    del host["moments"]["mean"]
    fresh = executor.save(executor.load(host))["moments"]
    assert not any(a.any() for a in fresh["mean"].values())
    assert_same_tree(fresh["square"], host["moments"]["square"])


def test_a_step_takes_the_gradient_of_the_mean(backend):
    executor, state = made(backend)
    before = executor.save(state)["weights"]
    loss, right, gradient = by_hand(before)
    state, metrics = step(backend, executor, state)
    np.testing.assert_allclose(metrics, [loss, right, 1], rtol=1e-5)
    for path, g in gradient.items():
        moved = before[path] - executor.save(state)["weights"][path]
        np.testing.assert_allclose(moved, g, rtol=0, atol=1e-6)
        assert np.abs(g).max() > 1e-2


def test_what_changes_from_step_to_step_is_handed_in(backend):
    """A number that were compiled into the step would stay what it was."""
    moves = {}
    for divisor, lr in ((N, 1.0), (N, 0.25), (2 * N, 1.0)):
        executor, state = made(backend)
        before = executor.save(state)["weights"]
        state, _ = step(backend, executor, state, divisor=divisor, lr=lr)
        after = executor.save(state)["weights"]
        moves[divisor, lr] = np.concatenate([(before[p] - after[p]).ravel() for p in before])
    np.testing.assert_allclose(moves[N, 0.25], moves[N, 1.0] / 4, rtol=0, atol=1e-6)
    np.testing.assert_allclose(moves[2 * N, 1.0], moves[N, 1.0] / 2, rtol=0, atol=1e-6)


def test_a_divisor_of_zero_is_no_gradient(backend):
    executor, state = made(backend)
    before = executor.save(state)
    state, metrics = step(backend, executor, state, divisor=0)
    assert metrics[2] == 1
    assert_same_tree(executor.save(state), before)


def test_masks_are_those_that_are_handed_in(backend):
    for keep, moved in ((False, False), (True, True)):
        executor, state = made(backend, MASKED)
        before = executor.save(state)["weights"]
        mask = np.full((N, 36), keep)
        state, _ = step(backend, executor, state, masks={"1.keep": mask})
        after = executor.save(state)["weights"]
        assert np.array_equal(before["2.weight"], after["2.weight"]) is not moved
        assert not np.array_equal(before["2.bias"], after["2.bias"])


@pytest.mark.eager
def test_masks_are_not_drawn_for_predictions(backend):
    executor, state = made(backend, MASKED)
    plain_executor, plain_state = made(backend)
    images = backend.asarray(IMAGES)
    assert executor.predict(state, images).shape == plain_executor.predict(plain_state, images).shape
    executor.evaluate(state, images, backend.asarray(LABELS))


def test_what_is_not_finite_stops_all_that_follows(backend):
    """Until the trainer looks, steps go on; they must do nothing."""
    executor, state = made(backend, NET, ADAM)
    masks = {"4.keep": np.ones((N, 2, 2, 3), bool)}
    state, metrics = step(backend, executor, state, masks=masks)
    assert metrics[2] == 1
    before = executor.save(state)
    bad = IMAGES[:N].copy()
    bad[3, 0, 0] = np.nan
    with executor.session():
        state, metrics = step(backend, executor, state, images=bad, masks=masks, number=2)
        assert metrics[2] == 0
        assert_same_tree(executor.save(state), before)
        state, metrics = step(backend, executor, state, masks=masks, number=3)
    assert metrics[2] == 0
    assert_same_tree(executor.save(state), before)


def test_weights_that_would_not_be_finite_are_not_taken_over(backend):
    executor, state = made(backend)
    before = executor.save(state)
    with executor.session():
        state, metrics = step(backend, executor, state, images=10 * IMAGES[:N], divisor=1, lr=3e38)
    assert np.isfinite(metrics[0])
    assert metrics[2] == 0
    assert_same_tree(executor.save(state), before)


def test_a_step_writes_to_nothing_but_its_state(backend):
    executor, state = made(backend, MASKED)
    mask = Stream(0, "mask").mask(0, N, (36,), 0.5)
    given = {"images": IMAGES[:N], "labels": LABELS[:N], "mask": mask}
    there = {name: backend.asarray(a, copy=True) for name, a in given.items()}
    scalars = executor.scalars(N, 1.0, 1)
    executor.step(state, there["images"], there["labels"], {"1.keep": there["mask"]}, scalars)
    for name, a in given.items():
        np.testing.assert_array_equal(np.array(backend.to_numpy(there[name])), a)


def test_predict_and_evaluate(backend):
    executor, state = made(backend)
    weights = executor.save(state)["weights"]
    images, labels = backend.asarray(IMAGES[:N]), backend.asarray(LABELS[:N])
    expected = IMAGES[:N].reshape(N, -1) @ weights["1.weight"].T + weights["1.bias"]
    np.testing.assert_allclose(np.array(backend.to_numpy(executor.predict(state, images))), expected, rtol=0, atol=1e-5)
    loss, right, _ = by_hand(weights)
    np.testing.assert_allclose(
        np.array(backend.to_numpy(executor.evaluate(state, images, labels))), [loss, right, 1], rtol=1e-5
    )
    assert_same_tree(executor.save(state)["weights"], weights)


@pytest.mark.eager
def test_the_first_layer_that_is_not_finite_is_found(backend):
    executor, state = made(backend, NET)
    images, draws = backend.asarray(IMAGES[:N]), {"4.keep": backend.asarray(np.ones((N, 2, 2, 3), bool))}
    assert executor.first_not_finite(state, images, draws) is None
    host = executor.save(state)
    for name, path in (("6.bias", "6"), ("1.bias", "1"), ("0.weight", "0")):
        host["weights"][name][...] = np.inf
        with executor.session():
            found = executor.first_not_finite(executor.load(host), images, draws)
        assert found == (path, NET.layers[int(path)])
