"""What a trainer promises: the same bits for the same seed, going on where it left off, records, sources, files."""

from dataclasses import replace
from hashlib import sha256
from types import SimpleNamespace

import numpy as np
import pytest
from training import (
    CLASSES,
    IMAGES,
    LABELS,
    NET,
    PLAIN,
    SHAPE,
    Moments,
    assert_same_state,
    assert_same_tree,
    net,
    plain,
    recorded,
    samples,
)

import xpnn
from xpnn import Callback, FileFormatError, NonFiniteError, ShapeError, Trainer
from xpnn.backend import get
from xpnn.layers import Dense, Flatten, MaxPool2D, Sequential, Tanh
from xpnn.losses import MSE, CrossEntropy
from xpnn.optim import SGD, AdamW, Cosine, OneCycle, OnPlateau, Step, WarmUp


def batches(n=2, size=10):
    return [(IMAGES[i * size : (i + 1) * size], LABELS[i * size : (i + 1) * size]) for i in range(n)]


def predicted(trainer, **options):
    return np.array(trainer.predict(IMAGES, **options))


class Reiterable:
    """A source of batches without a length."""

    def __init__(self, batches):
        self.batches, self.times = batches, 0

    def __iter__(self):
        self.times += 1
        return iter(self.batches)


# The same bits


def test_a_seed_gives_the_same_weights_order_and_masks_everywhere(backend):
    here, there = net(backend, seed=3).build(SHAPE), net("numpy", seed=3).build(SHAPE)
    assert_same_state(here, there)
    with recorded(here) as seen, recorded(there) as expected:
        here.fit(IMAGES, LABELS, batch_size=10, epochs=2)
        there.fit(IMAGES, LABELS, batch_size=10, epochs=2)
    assert len(seen) == len(expected) == 4
    for ours, theirs in zip(seen, expected, strict=True):
        for mine, its in zip(ours[:2], theirs[:2], strict=True):
            np.testing.assert_array_equal(mine, its)
        assert_same_tree(ours[2], theirs[2])
        np.testing.assert_array_equal(ours[3], theirs[3])


def test_the_bits_of_a_seed_are_these():
    """Another version of xpnn must not train differently without anyone having meant it."""
    trainer = net(seed=7).build(SHAPE)
    digest = sha256(b"".join(a.tobytes() for a in trainer.weights.values()))
    with recorded(trainer) as seen:
        trainer.fit(IMAGES, LABELS, batch_size=8, epochs=2)
    for images, targets, masks, _ in seen:
        digest.update(images.tobytes() + targets.tobytes() + masks["4.keep"].tobytes())
    assert digest.hexdigest()[:16] == "ad8af701206dc4bd"


def test_order_and_masks_do_not_depend_on_the_cut_of_the_batches():
    cuts = []
    for size in (20, 10, 7, 1):
        trainer = net(seed=1).build(SHAPE)
        with recorded(trainer) as seen:
            trainer.fit(IMAGES, LABELS, batch_size=size, epochs=2)
        cuts.append([np.concatenate([row[i] for row in seen]) for i in (0, 1)])
        cuts[-1].append(np.concatenate([row[2]["4.keep"] for row in seen]))
    for cut in cuts[1:]:
        for a, b in zip(cut, cuts[0], strict=True):
            np.testing.assert_array_equal(a, b)


def test_masks_and_order_are_drawn_anew():
    trainer = net().build(SHAPE)
    with recorded(trainer) as seen:
        trainer.fit(IMAGES, LABELS, batch_size=20, epochs=2)
        trainer.fit(IMAGES, LABELS, batch_size=20)
    orders = [images for images, *_ in seen]
    masks = [masks["4.keep"] for *_, masks, _ in seen]
    for several in (orders, masks):
        assert all(not np.array_equal(several[i], several[j]) for i in range(3) for j in range(i))
    for images in orders:  # each time the same samples
        np.testing.assert_array_equal(np.sort(images.ravel()), np.sort(IMAGES.ravel()))
    assert 0.6 < np.mean(masks) < 0.8  # kept with probability 0.7
    assert not np.array_equal(masks[0][:10], masks[0][10:])  # each sample has its own


@pytest.mark.eager
def test_images_keep_their_labels(backend):
    trainer = plain(backend).build(SHAPE)
    with recorded(trainer) as seen:
        trainer.fit(IMAGES, LABELS, batch_size=8)
    for images, labels, *_ in seen:
        np.testing.assert_array_equal(np.argmax(images[:, :CLASSES, 0, 0], axis=1), labels)


def test_another_seed_is_another_run():
    a, b = net(seed=0).build(SHAPE), net(seed=1).build(SHAPE)
    assert not np.array_equal(a.weights["0.weight"], b.weights["0.weight"])
    orders = []
    for trainer in (a, b):
        with recorded(trainer) as seen:
            trainer.fit(IMAGES, LABELS)
        orders.append(seen[0][0])
    assert not np.array_equal(*orders)


def test_twenty_steps_twice_are_equal_bit_for_bit(backend):
    twice = [net(backend), net(backend)]
    for trainer in twice:
        before = trainer.build(SHAPE).host_state()
        records = trainer.fit(IMAGES, LABELS, batch_size=10, epochs=10)
        assert trainer.step == 20
        assert records[-1]["loss"] < records[0]["loss"]
        for kind in ("weights", "stats"):
            for path, array in trainer.host_state()[kind].items():
                assert not np.array_equal(array, before[kind][path]), path
    assert_same_state(*twice)
    np.testing.assert_array_equal(*[predicted(trainer) for trainer in twice])
    assert [r["loss"] for r in twice[0].history] == [r["loss"] for r in twice[1].history]


def test_a_step_is_the_same_on_every_backend(backend):
    """One step of plain descent moves the weights by the gradient: the one that float64 on NumPy finds."""
    moved = []
    for place, dtype in ((backend, "float32"), (get("numpy"), "float64")):
        trainer = Trainer(NET, optimizer=SGD(1.0), backend=place, dtype=dtype).build(SHAPE)
        before = trainer.host_state()
        trainer.fit(IMAGES[:10], LABELS[:10], batch_size=10)
        after = trainer.host_state()
        moved.append({p: after[k][p] - before[k][p] for k in ("weights", "stats") for p in after[k]})
    for path, expected in moved[1].items():
        np.testing.assert_allclose(moved[0][path], expected, rtol=0, atol=2e-6 * (1 + np.abs(expected).max()))


# Going on


def test_two_fits_are_one_that_is_longer():
    one, two = net(), net()
    one.fit(IMAGES, LABELS, batch_size=8, epochs=4)
    first = two.fit(IMAGES, LABELS, batch_size=8, epochs=1)
    second = two.fit(IMAGES, LABELS, batch_size=8, epochs=3)
    assert_same_state(one, two)
    assert [r["epoch"] for r in first + second] == [1, 2, 3, 4]
    assert two.history == first + second
    assert (two.step, two.samples) == (12, 80)


def test_a_state_that_was_saved_goes_on_bit_for_bit(backend, tmp_path):
    one, two = net(backend, seed=5), net(backend, seed=5)
    one.fit(IMAGES, LABELS, batch_size=10, epochs=4)
    two.fit(IMAGES, LABELS, batch_size=10, epochs=2)
    two.save(tmp_path / "state.safetensors")
    three = Trainer.load(tmp_path / "state.safetensors", backend=backend)
    assert_same_state(two, three)
    assert (three.model, three.loss, three.optimizer, three.schedule, three.seed, three.dtype) == (
        two.model, two.loss, two.optimizer, two.schedule, two.seed, two.dtype,
    )  # fmt: skip
    assert three.history == two.history
    three.fit(IMAGES, LABELS, batch_size=10, epochs=2)
    assert_same_state(one, three)


def test_a_network_moves_to_another_backend(backend, tmp_path):
    for first, second in ((backend, get("numpy")), (get("numpy"), backend)):
        trained = net(first)
        trained.fit(IMAGES, LABELS, batch_size=10, epochs=2)
        trained.save(tmp_path / "state.safetensors")
        moved = Trainer.load(tmp_path / "state.safetensors", backend=second)
        assert moved.backend is second
        assert_same_state(trained, moved)
        here, there = predicted(trained), predicted(moved)
        np.testing.assert_allclose(here, there, rtol=0, atol=1e-5 * np.abs(here).max())


def test_load_keeps_all_that_was_chosen(tmp_path):
    chosen = Trainer(
        PLAIN, CrossEntropy((1.0, 2.0, 0.5), 7, 0.1), AdamW(0.01, clip_norm=2.0), WarmUp(3, Cosine(0.1)),
        backend="numpy", seed=9, dtype="float64",
    )  # fmt: skip
    chosen.fit(IMAGES, LABELS)
    chosen.save(tmp_path / "state.safetensors")
    loaded = Trainer.load(tmp_path / "state.safetensors", backend="numpy")
    for name in ("model", "loss", "optimizer", "schedule", "seed", "dtype", "in_shape"):
        assert getattr(loaded, name) == getattr(chosen, name), name
    assert_same_state(loaded, chosen)


def test_weights_alone_begin_anew(tmp_path):
    trained = net()
    trained.fit(IMAGES, LABELS, epochs=2)
    trained.save_weights(tmp_path / "weights.safetensors")
    with pytest.raises(FileFormatError, match=r"weights alone.*load_weights\(path\)"):
        Trainer.load(tmp_path / "weights.safetensors", backend="numpy")
    other = net(seed=8)
    other.fit(IMAGES, LABELS, epochs=3)
    for fresh in (net(seed=8), other):
        fresh.load_weights(tmp_path / "weights.safetensors")
        assert (fresh.step, fresh.samples, fresh.history) == (0, 0, [])
        assert_same_tree(fresh.weights, trained.weights)
        assert_same_tree(fresh.stats, trained.stats)
        assert not any(a.any() for moment in fresh.host_state()["moments"].values() for a in moment.values())


def test_weights_of_another_model(tmp_path):
    plain().build(SHAPE).save_weights(tmp_path / "weights.safetensors")
    wider = plain(model=Sequential([Flatten(), Dense(4), Tanh(), Dense(3)])).build(SHAPE)
    before = wider.weights
    with pytest.raises(FileFormatError) as e:
        wider.load_weights(tmp_path / "weights.safetensors")
    assert "3.weight" in str(e.value)  # missing
    assert "1.weight (3, 36), the model has (4, 36)" in str(e.value)
    assert_same_tree(wider.weights, before)


def test_weights_for_samples_of_another_size(tmp_path):
    """A model may be made for another size by loading; the steps must be those of that size."""
    small, large = plain(), plain().build((8, 8, 1))
    small.build(SHAPE).save_weights(tmp_path / "weights.safetensors")
    large.load_weights(tmp_path / "weights.safetensors", in_shape=SHAPE)
    large.fit(IMAGES, LABELS)
    small.fit(IMAGES, LABELS)
    assert_same_state(small, large)


def test_nothing_to_save_before_there_are_weights(tmp_path):
    with pytest.raises(RuntimeError, match="no weights yet: call fit, build"):
        net().save(tmp_path / "state.safetensors")
    with pytest.raises(RuntimeError, match="no weights yet"):
        _ = net().weights


def test_what_it_hands_out_is_a_copy(backend):
    trainer = plain(backend).build(SHAPE)
    for array in (trainer.weights["1.weight"], trainer.host_state()["weights"]["1.weight"]):
        assert type(array) is np.ndarray
        array[:] = 1e9
    assert np.abs(trainer.weights["1.weight"]).max() < 1
    assert np.abs(trainer.predict(IMAGES)).max() < 100


# The optimizer in flight


def test_the_learning_rate_can_be_changed():
    trainer, other = net(), net()
    for t in (trainer, other):
        t.fit(IMAGES, LABELS)
    executor = trainer.executor
    trainer.optimizer = replace(trainer.optimizer, lr=0.0)
    assert trainer.executor is executor  # nothing to compile anew
    before = trainer.weights
    trainer.fit(IMAGES, LABELS)
    assert_same_tree(trainer.weights, before)
    assert trainer.history[-1]["lr"] == 0


def test_other_options_of_the_optimizer_can_be_changed():
    trainer = Trainer(PLAIN, optimizer=SGD(0.1, momentum=0.9), backend="numpy")
    trainer.fit(IMAGES, LABELS)
    before = trainer.host_state()
    trainer.optimizer = SGD(0.1, momentum=0.9, clip_norm=0.0)
    assert_same_tree(trainer.host_state(), before)
    trainer.fit(IMAGES, LABELS, batch_size=20)  # without a gradient the velocity alone moves the weights
    for path, weight in before["weights"].items():
        expected = weight - np.float32(0.1) * (np.float32(0.9) * before["moments"]["velocity"][path])
        np.testing.assert_allclose(trainer.weights[path], expected, rtol=1e-6, atol=1e-7)


def test_another_optimizer_is_refused():
    trainer = net()
    with pytest.raises(TypeError, match=r"SGD\(.*cannot go on where Adam\(.*load_weights"):
        trainer.optimizer = SGD(0.1)


# Records and epochs


def test_records():
    trainer = plain()
    (record,) = trainer.fit(IMAGES, LABELS, validation_data=(IMAGES[:7], LABELS[:7]))
    assert list(record) == [
        "epoch", "loss", "accuracy", "lr", "seconds", "images_per_second", "validation_loss", "validation_accuracy",
    ]  # fmt: skip
    assert all(type(v) in (int, float) for v in record.values())
    assert record["lr"] == 0.05
    assert record["seconds"] > 0
    assert {k.removeprefix("validation_"): record[k] for k in list(record)[-2:]} == trainer.evaluate(
        IMAGES[:7], LABELS[:7]
    )


def test_the_loss_of_a_record_is_the_mean_over_all_samples():
    """With a learning rate of 0 it is that of the whole, however the last batch comes out."""
    for size in (20, 7, 3):
        trainer = plain(optimizer=SGD(0.0))
        (record,) = trainer.fit(IMAGES, LABELS, batch_size=size)
        expected = trainer.evaluate(IMAGES, LABELS)
        assert record["loss"] == pytest.approx(expected["loss"], rel=1e-6)
        assert record["accuracy"] == expected["accuracy"]


@pytest.mark.eager
def test_evaluate_over_unequal_batches_is_one_large_batch(backend):
    trainer = plain(backend).build(SHAPE)
    whole = trainer.evaluate(IMAGES, LABELS)
    parts = trainer.evaluate(IMAGES, LABELS, batch_size=8)
    scores = trainer.predict(IMAGES).astype("float64")
    log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    assert whole["loss"] == pytest.approx(-log_p[range(20), LABELS].mean(), rel=1e-5)
    assert whole["accuracy"] == parts["accuracy"] == np.mean(scores.argmax(axis=1) == LABELS)
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-6)


def test_evaluate_and_predict_change_nothing():
    trainer = net()
    trainer.fit(IMAGES, LABELS)
    before = trainer.host_state()
    first = trainer.evaluate(IMAGES, LABELS)
    assert trainer.evaluate(IMAGES, LABELS) == first  # no masks are drawn
    trainer.predict(IMAGES)
    assert_same_tree(trainer.host_state(), before)
    assert (trainer.step, trainer.samples, len(trainer.history)) == (1, 20, 1)


def test_losses_without_right_and_wrong_have_no_accuracy():
    trainer = Trainer(PLAIN, "mse", backend="numpy")
    targets = np.zeros((20, 3), "float32")
    (record,) = trainer.fit(IMAGES, targets, validation_data=(IMAGES, targets))
    assert not any("accuracy" in name for name in record)
    assert list(trainer.evaluate(IMAGES, targets)) == ["loss"]


def test_no_epochs():
    trainer, moments = net(), Moments()
    assert trainer.fit(IMAGES, LABELS, epochs=0, callbacks=[moments]) == []
    assert_same_state(trainer, net().build(SHAPE))
    assert moments.log == [("begin", 0, 1), ("end",)]


@pytest.mark.parametrize(("size", "sizes"), [(1000, [20]), (20, [20]), (8, [8, 8, 4]), (19, [19, 1])])
def test_batches_come_out_whole_and_the_last_may_be_smaller(size, sizes):
    trainer = plain().build(SHAPE)
    with recorded(trainer) as seen:
        trainer.fit(IMAGES, LABELS, batch_size=size)
    assert [len(images) for images, *_ in seen] == sizes
    assert trainer.samples == 20


def test_counts_may_be_numpy_integers():
    trainer = plain()
    assert len(trainer.fit(IMAGES, LABELS, epochs=np.int64(2), batch_size=np.int32(10))) == 2
    assert repr(plain().build(np.array(SHAPE)).in_shape) == repr(SHAPE)
    assert repr(plain(seed=np.int64(3)).seed) == "3"


# Callbacks


def test_callbacks_are_told_in_order():
    log = []
    net().fit(IMAGES, LABELS, batch_size=10, epochs=2, callbacks=[Moments(log, "a "), Moments(log, "b ")])
    one = [
        ("begin", 2, 2), ("step", 1, 1), ("step", 1, 2), ("epoch", 1, 1), ("step", 2, 1), ("step", 2, 2),
        ("epoch", 2, 2), ("end",),
    ]  # fmt: skip
    assert log == [(f"{name} {moment}", *rest) for moment, *rest in one for name in "ab"]


def test_callbacks_may_come_from_a_generator():
    log = []
    net().fit(IMAGES, LABELS, epochs=2, callbacks=(Moments(log) for _ in range(1)))
    assert [name for name, *_ in log] == ["begin", "step", "epoch", "step", "epoch", "end"]


@pytest.mark.parametrize(
    ("given", "came"),
    [
        (Moments(), "<training.Moments object"),
        ([Moments], r"<class 'training.Moments'> \(call it: Moments\(…\)\)$"),
        ([Moments(), print], "<built-in"),
        (None, "None$"),
    ],
    ids=["no list", "class", "function", "None"],
)
def test_what_are_no_callbacks(given, came):
    trainer = plain()
    message = rf"callbacks takes a list of xpnn\.Callback, e\.g\. \[EarlyStopping\(3\)\]; came {came}"
    with pytest.raises(TypeError, match=message):
        trainer.fit(IMAGES, LABELS, callbacks=given)
    assert trainer.step == 0


def test_a_callback_needs_no_base():
    moments = []
    named = {name: lambda *_, name=name: moments.append(name) for name in ("on_begin", "on_step", "on_epoch", "on_end")}
    net().fit(IMAGES, LABELS, batch_size=len(IMAGES), callbacks=[SimpleNamespace(**named)])
    assert moments == list(named)


def test_callbacks_see_how_far_it_is():
    class Look(Callback):
        def on_step(self, fit):
            assert (fit.trainer, fit.epochs, fit.steps, fit.lr) == (trainer, 1, 2, 0.05)
            assert fit.images == 10 * fit.step == 10 * fit.done
            assert fit.seconds > 0
            means.append(fit.means())

    trainer, means = plain(), []
    (record,) = trainer.fit(IMAGES, LABELS, batch_size=10, callbacks=[Look()])
    assert means[-1] == {"loss": record["loss"], "accuracy": record["accuracy"]}
    assert means[0] != means[1]


def test_callbacks_are_told_of_the_end_where_training_raises():
    class Broken(Callback):
        def on_step(self, fit):
            raise KeyboardInterrupt

    before, after = Moments(), Moments()
    trainer = plain()
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(IMAGES, LABELS, batch_size=10, callbacks=[before, Broken(), after])
    assert before.log == [("begin", 1, 2), ("step", 1, 1), ("end",)]
    assert after.log == [("begin", 1, 2), ("end",)]
    assert (trainer.step, trainer.samples, trainer.history) == (1, 10, [])
    trainer.fit(IMAGES, LABELS, batch_size=10)
    assert (trainer.step, trainer.samples) == (3, 30)


def test_a_callback_may_save(tmp_path):
    class Keep(Callback):
        def on_epoch(self, fit, record):
            fit.trainer.save(tmp_path / f"{record['epoch']}.safetensors")

    trainer, other = net(), net()
    trainer.fit(IMAGES, LABELS, epochs=2, callbacks=[Keep()])
    assert_same_state(trainer, Trainer.load(tmp_path / "2.safetensors", backend="numpy"))
    other.fit(IMAGES, LABELS)
    assert_same_state(other, Trainer.load(tmp_path / "1.safetensors", backend="numpy"))


# Learning rates


def rates(trainer, *args, **options):
    class Rates(Callback):
        def on_step(self, fit):
            seen.append(fit.lr)

    seen = []
    records = trainer.fit(*args, callbacks=[Rates()], **options)
    return seen, records


@pytest.mark.parametrize("schedule", [OneCycle(), Cosine(0.1), Step(1, 0.5), WarmUp(3)])
def test_each_step_uses_the_rate_of_its_schedule(schedule):
    trainer = plain(optimizer=SGD(0.1), schedule=schedule).build(SHAPE)
    with recorded(trainer) as handed:
        seen, records = rates(trainer, IMAGES, LABELS, batch_size=10, epochs=3)
    expected = [0.1 * schedule(xpnn.optim.Progress(step, 6, step // 2)) for step in range(6)]
    assert seen == expected
    assert [r["lr"] for r in records] == expected[1::2]
    np.testing.assert_array_equal([scalars[1] for *_, scalars in handed], np.float32(expected))
    np.testing.assert_array_equal([scalars[0] for *_, scalars in handed], np.float32([0.1] * 6))  # 1/N
    assert rates(trainer, IMAGES, LABELS, batch_size=10, epochs=3)[0] == expected  # each fit has its own


def test_a_plateau_is_found_in_the_validation_loss():
    class Flat(Trainer):
        def _evaluate(self, source):
            return {"loss": 1.0}

    trainer = Flat(PLAIN, schedule=OnPlateau(0.5, patience=1), optimizer=SGD(0.1), backend="numpy")
    _, records = rates(trainer, IMAGES, LABELS, epochs=6, validation_data=(IMAGES, LABELS))
    assert [r["lr"] for r in records] == [0.1, 0.1, 0.1, 0.05, 0.05, 0.025]


def test_a_plateau_is_found_in_the_training_loss_where_there_is_no_other():
    trainer = plain(schedule=OnPlateau(0.5, patience=0), optimizer=SGD(0.0))
    trainer.optimizer = SGD(1e-30)  # moves nothing, so that the loss stays
    _, records = rates(trainer, IMAGES, LABELS, epochs=3, batch_size=20)
    assert records[0]["loss"] == pytest.approx(records[2]["loss"], rel=1e-5)
    assert [r["lr"] for r in records] == [1e-30, 1e-30, 0.5e-30]


# Sources of batches


@pytest.mark.parametrize("source", [batches(), tuple(batches()), Reiterable(batches())], ids=["list", "tuple", "iter"])
def test_a_source_is_gone_through_in_its_own_order(source):
    trainer = plain()
    with recorded(trainer.build(SHAPE)) as seen:
        records = trainer.fit(source, epochs=2, validation_data=source)
    assert [len(images) for images, *_ in seen] == [10] * 4
    np.testing.assert_array_equal(np.concatenate([images for images, *_ in seen]), np.concatenate([IMAGES, IMAGES]))
    assert (trainer.step, trainer.samples) == (4, 40)
    assert trainer.evaluate(source) == trainer.evaluate(IMAGES, LABELS, batch_size=10)
    assert records[-1]["validation_loss"] == trainer.evaluate(source)["loss"]


@pytest.mark.eager
def test_a_source_builds_the_model(backend):
    trainer = plain(backend)
    trainer.fit([[IMAGES[:8], list(LABELS[:8])], (IMAGES[8:], LABELS[8:])])
    assert (trainer.in_shape, trainer.step, trainer.samples) == (SHAPE, 2, 20)


@pytest.mark.eager
def test_batches_of_a_source_may_be_on_the_device(backend):
    source = [(backend.asarray(x), backend.asarray(y)) for x, y in batches()]
    trainers = plain(backend), plain(backend)
    trainers[0].fit(source)
    trainers[1].fit(batches())
    assert_same_state(*trainers)


def test_a_source_without_length_leaves_the_number_of_steps_open():
    moments = Moments()
    plain().fit(Reiterable(batches()), callbacks=[moments])
    assert moments.log[0] == ("begin", 1, None)
    seen, _ = rates(plain(schedule=WarmUp(4), optimizer=SGD(1.0)), Reiterable(batches()), epochs=2)
    assert seen == [0.25, 0.5, 0.75, 1.0]
    with pytest.raises(ValueError, match=r"OneCycle needs to know how many steps.*with a length"):
        plain(schedule=OneCycle()).fit(Reiterable(batches()))


def test_validation_by_a_source_of_two_batches():
    pair = tuple(batches())  # looks like (images, labels), but is not
    (record,) = plain().fit(IMAGES, LABELS, validation_data=pair)
    assert record["validation_loss"] > 0


# What goes in and comes out


def test_predict_gives_the_callers_kind_of_array(backend):
    trainer = plain(backend).build(SHAPE)
    host = trainer.predict(IMAGES)
    assert isinstance(host, np.ndarray)
    assert (host.shape, host.dtype) == ((20, 3), np.float32)
    on_device = trainer.predict(backend.asarray(IMAGES))
    assert backend.owns(on_device)
    np.testing.assert_array_equal(np.array(backend.to_numpy(on_device)), np.array(host))


@pytest.mark.eager
def test_predict_in_parts(backend):
    trainer = plain(backend).build(SHAPE)
    whole, parts = predicted(trainer), predicted(trainer, batch_size=8)
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)
    assert trainer.predict(IMAGES[:0]).shape == (0, 3)
    assert isinstance(trainer.predict(IMAGES[:2].tolist()), np.ndarray)


def test_float64_is_computed_in_float64(variant, backend):
    if not backend.supports("float64") or (variant.traced and not variant.x64):
        with pytest.raises(xpnn.BackendError, match=r"float64.*(dtype=|JAX_ENABLE_X64)"):
            plain(backend, dtype="float64")
        return
    trainer = plain(backend, dtype="float64")
    trainer.fit(IMAGES, LABELS, batch_size=10)
    for kind in ("weights", "moments"):
        for tree in [trainer.host_state()[kind]]:
            leaves = [a for v in tree.values() for a in (v.values() if isinstance(v, dict) else [v])]
            assert {a.dtype.name for a in leaves} == {"float64"}
    scores = trainer.predict(IMAGES)
    assert scores.dtype == np.float64
    expected = IMAGES.reshape(20, -1).astype("float64") @ trainer.weights["1.weight"].T + trainer.weights["1.bias"]
    np.testing.assert_allclose(scores, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float64", "float16", ">f4"])
def test_images_of_another_precision_are_cast_at_the_door(dtype):
    trainers = plain(), plain()
    with recorded(trainers[0].build(SHAPE)) as seen:
        trainers[0].fit(IMAGES.astype(dtype), LABELS)
    assert seen[0][0].dtype == np.float32
    trainers[1].fit(IMAGES.astype(dtype).astype("float32"), LABELS)
    assert_same_state(*trainers)
    assert trainers[0].predict(IMAGES.astype(dtype)).dtype == np.float32


@pytest.mark.eager
@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "uint16"])
def test_labels_of_any_integer_type(backend, dtype):
    trainers = plain(backend), plain(backend)
    trainers[0].fit(IMAGES, LABELS.astype(dtype))
    trainers[1].fit(IMAGES, LABELS.tolist())
    assert_same_state(*trainers)


@pytest.mark.eager
def test_data_are_not_written_to(backend):
    images, labels = IMAGES.copy(), LABELS.copy()
    for a in (images, labels):
        a.flags.writeable = False
    trainer = net(backend)
    trainer.fit(images, labels, batch_size=10, validation_data=(images, labels))
    trainer.predict(images)
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)


# A loss that is no longer finite

FALLING = Sequential([Flatten(), Dense(4), Dense(CLASSES)])
SOURCES = {"arrays": lambda: (IMAGES, LABELS), "source": lambda: (Reiterable(batches(3, 7)),)}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.eager
def test_a_loss_that_leaves_the_finite_numbers(backend, source):
    trainer = Trainer(FALLING, optimizer=SGD(1e30, momentum=0.5), backend=backend)
    states = []

    class Keep(Callback):
        def on_step(self, fit):
            states.append((trainer.step, trainer.samples, trainer.host_state()))

    with pytest.raises(NonFiniteError) as e:
        trainer.fit(*SOURCES[source](), batch_size=7, callbacks=[Keep()])
    step = trainer.step
    assert 0 < step < 3
    assert len(states) == 3
    text = str(e.value)
    assert f"at step {step + 1} (epoch 1, batch {step + 1})" in text
    assert "the first output that is not finite is that of layer 1 (Dense(4))" in text or "layer 2 (Dense(3))" in text
    assert "The weights are those before that step" in text
    assert "trainer.optimizer = SGD(lr=1e+29, clip_norm=1.0, momentum=0.5" in text
    assert (trainer.step, trainer.samples) == states[step - 1][:2] == (step, 7 * step)
    assert_same_tree(trainer.host_state(), states[step - 1][2])
    assert trainer.history == []

    finite = Trainer(FALLING, optimizer=SGD(1e-3, momentum=0.5), backend=backend).build(SHAPE)
    state = finite.host_state()
    state["weights"] = {p: np.nan_to_num(a) * 0 + state["weights"][p] for p, a in trainer.weights.items()}
    trainer.restore(SHAPE, state)
    trainer.optimizer = replace(trainer.optimizer, lr=1e-3)
    (record,) = trainer.fit(*SOURCES[source](), batch_size=7)
    assert np.isfinite(record["loss"])
    assert trainer.step == step + 3


def test_training_goes_on_from_the_step_before_with_a_smaller_rate(backend):
    """The second batch blows up; what went before is kept and built upon."""
    spike = IMAGES.copy()
    spike[13] *= 1e38
    labels = LABELS.copy()
    source = [(spike[:10], labels[:10]), (spike[10:], labels[10:])]
    trainer = Trainer(FALLING, optimizer=SGD(0.01), backend=backend)
    with pytest.raises(NonFiniteError, match=r"at step 2 \(epoch 1, batch 2\).*layer 1 \(Dense\(4\)\)"):
        trainer.fit(source)
    good = Trainer(FALLING, optimizer=SGD(0.01), backend=backend)
    good.fit(source[:1])
    assert (trainer.step, trainer.samples) == (good.step, good.samples) == (1, 10)
    assert_same_tree(trainer.weights, good.weights)
    trainer.optimizer = replace(trainer.optimizer, lr=0.001)
    good.optimizer = replace(good.optimizer, lr=0.001)
    trainer.fit(batches())
    good.fit(batches())
    assert_same_tree(trainer.weights, good.weights)


def test_the_layer_inside_a_block_is_named():
    from xpnn.layers import Residual

    model = Sequential([Flatten(), Residual(Sequential([Dense(36), Tanh(), Dense(36)])), Dense(3)])
    trainer = Trainer(model, backend="numpy").build(SHAPE)
    state = trainer.host_state()
    state["weights"]["1.body.2.weight"][:] = 1e38
    trainer.restore(SHAPE, state)
    with pytest.raises(NonFiniteError, match=r"layer 1\.body\.2 \(Dense\(36\)\)"):
        trainer.fit(IMAGES, LABELS)


def test_a_loss_that_is_not_finite_though_all_layers_are():
    trainer = Trainer(PLAIN, "mse", backend="numpy")
    with pytest.raises(NonFiniteError, match="the outputs of all layers are finite, but the loss"):
        trainer.fit(IMAGES, np.full((20, 3), 1e30, "float32"))
    assert trainer.step == 0


def test_statistics_and_moments_are_those_before_the_step():
    trainer = net()
    trainer.fit(IMAGES, LABELS, batch_size=10)
    before = trainer.host_state()
    bad = IMAGES[:10].copy()
    bad[0] = 3e38
    with pytest.raises(NonFiniteError):
        trainer.fit([(bad, LABELS[:10])])
    assert_same_tree(trainer.host_state(), before)


def test_an_interruption_after_such_a_step_leaves_the_counters_right():
    class Stop(Callback):
        def on_step(self, fit):
            if not np.isfinite(fit.means()["loss"]):
                done.append(fit.done)
                if len(done) == 3:  # two more steps, which do nothing
                    raise KeyboardInterrupt

    trainer, done = Trainer(FALLING, optimizer=SGD(1e30), backend="numpy"), []
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(IMAGES, LABELS, batch_size=2, callbacks=[Stop()])
    assert trainer.step == done[0] - 1 > 0
    assert trainer.samples == 2 * trainer.step
    before, step = trainer.weights, trainer.step
    with pytest.raises(NonFiniteError, match=f"at step {step + 1} "):
        trainer.fit(IMAGES, LABELS, batch_size=2)
    assert_same_tree(trainer.weights, before)


def test_a_validation_loss_that_is_not_finite_is_told_but_does_not_stop():
    trainer = plain(optimizer=SGD(0.0))
    (record,) = trainer.fit(IMAGES, LABELS, validation_data=(IMAGES * 1e38, LABELS), batch_size=5)
    assert np.isnan(record["validation_loss"])
    assert 0 <= record["validation_accuracy"] <= 1
    assert np.isfinite(record["loss"])


# What it is made with


def test_unknown_names():
    with pytest.raises(ValueError, match=r"no loss 'crossentropy'; there are cross_entropy, nll, mse"):
        Trainer(PLAIN, "crossentropy", backend="numpy")
    with pytest.raises(xpnn.BackendError, match=r"no backend 'nunpy'.*did you mean 'numpy'"):
        Trainer(PLAIN, backend="nunpy")
    with pytest.raises(ValueError, match=r"dtype='float16'; expected 'float32' or 'float64'"):
        Trainer(PLAIN, backend="numpy", dtype="float16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": [Dense(3)]}, r"model is a list; expected a layer, e\.g\. Sequential"),
        ({"optimizer": "adam"}, r"optimizer='adam'; expected one of xpnn\.optim, e\.g\. Adam"),
        ({"optimizer": AdamW}, r"optimizer=<class .*; expected one of xpnn\.optim"),
        ({"schedule": "cosine"}, r"schedule='cosine'; expected one of xpnn\.optim, e\.g\. Cosine"),
        ({"schedule": MSE()}, r"schedule=MSE\(\); expected"),
        ({"loss": MSE}, r"loss=<class .*MSE'>; expected one of .* or a loss of xpnn\.losses, e\.g\. CrossEntropy\(\)"),
        ({"loss": print}, r"loss=<built-in .*; expected .* one of your own is an instance of a subclass"),
        ({"seed": "a"}, "seed='a'; expected an integer"),
        ({"seed": 1.5}, r"seed=1\.5; expected an integer"),
        ({"seed": None}, "seed=None; expected an integer"),
    ],
)
def test_parts_of_the_wrong_kind(options, message):
    with pytest.raises(TypeError, match=message):
        Trainer(**{"model": PLAIN, "backend": "numpy"} | options)


def test_repr():
    trainer = plain()
    assert repr(trainer) == "<Trainer of Sequential on numpy: no weights yet, step 0>"
    trainer.fit(IMAGES, LABELS, batch_size=10)
    count = sum(a.size for a in trainer.weights.values())
    assert repr(trainer) == f"<Trainer of Sequential on numpy: {count:,} parameters for samples of {SHAPE}, step 2>"


def test_build_twice():
    trainer = plain().build(SHAPE)
    assert trainer.build(list(SHAPE)) is trainer
    with pytest.raises(ShapeError, match=r"samples have shape \(8, 8, 1\), but this model was built for \(6, 6, 1\)"):
        trainer.build((8, 8, 1))


def test_a_model_without_weights():
    model = Sequential([MaxPool2D(2), Flatten()])
    trainer = Trainer(model, backend="numpy")
    with pytest.raises(ValueError, match="has no weights: there is nothing to train, but evaluate and predict work"):
        trainer.fit(IMAGES, LABELS)
    assert trainer.predict(IMAGES).shape == (20, 9)
    assert 0 <= trainer.evaluate(IMAGES, LABELS)["accuracy"] <= 1


@pytest.mark.eager
def test_a_model_that_is_one_layer(backend):
    trainer = Trainer(Dense(CLASSES), backend=backend)
    images, labels = samples(8, shape=(5,))
    trainer.fit(images, labels)
    assert trainer.predict(images).shape == (8, 3)
    assert list(trainer.weights) == ["weight", "bias"]
