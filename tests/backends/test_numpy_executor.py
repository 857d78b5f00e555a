"""The NumPy executor: any number of threads gives the bits of one, lanes and pieces the numbers of the whole."""

import os
import signal
import subprocess
import sys
import threading
import time
import traceback

import numpy as np
import pytest
from pieces import IMAGES, JOINED, LABELS, MODEL, MODELS, assert_same_bits, bits
from xpnn_numpy import blas, executor, helpers, lanes

import xpnn
from xpnn.layers import (
    Conv2D,
    Dense,
    Flatten,
    Layer,
    Sequential,
)
from xpnn.train.executor import Executor


@pytest.fixture(autouse=True, params=["plain", "compiled"])
def kernels(request, monkeypatch):
    """NumPy's own, whose threads take lanes, and compiled ones, which share what each of them does."""
    monkeypatch.setattr(helpers, "POSSIBLE", False)  # they would come once the tests before have computed for a second
    if request.param == "compiled":
        pytest.importorskip("numba")
        if os.environ.get("XPNN_KERNELS"):
            pytest.skip("compiled kernels are not asked for")
    else:
        monkeypatch.setenv("XPNN_KERNELS", "plain")
    return request.param


@pytest.fixture
def small(monkeypatch):
    """Eight lanes for any batch of eight, four samples a piece."""
    monkeypatch.setattr(executor, "LANES", ((0, 8),))
    for limit in ("PIECE_BYTES", "PLAYED_BYTES"):
        monkeypatch.setattr(executor, limit, 4 * 8 * 10 * 10 * 4)
    monkeypatch.setattr(executor, "CHUNK", 100)


def trained(model, batch_size=35, **options):
    trainer = xpnn.Trainer(model, backend="numpy", seed=1, **options)
    records = trainer.fit(IMAGES, LABELS, epochs=2, batch_size=batch_size)
    return trainer, records


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("model", MODELS)
def test_same_bits_for_any_number_of_threads(monkeypatch, model):
    results = []
    for threads in ("1", "2", "8"):
        monkeypatch.setenv("XPNN_THREADS", threads)
        results.append(bits(*trained(MODELS[model])))
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


@pytest.mark.parametrize(("bytes_", "expected"), [(1, 1), (2 << 20, 2), (16 << 20, 4), (32 << 20, 8), (1 << 40, 8)])
def test_lanes_grow_with_the_batch(kernels, bytes_, expected):
    trainer = xpnn.Trainer(MODEL, backend="numpy", seed=1).build((12, 12, 1))
    trainer.executor.sample_bytes = -(-bytes_ // 70)
    flats, *_ = trainer.executor._lanes(trainer._state, IMAGES, LABELS, trainer._draws(0, 70), np.float32(1))
    assert len(flats) == (expected if kernels == "plain" else 1)


@pytest.mark.parametrize(("work", "samples", "expected"), [(1, 70, 2), (0.9, 70, 1), (70, 1, 1), (35, 2, 2)])
@pytest.mark.parametrize(("model", "least"), [("per-sample", lanes.LEAST_HELPED), ("batch-norm", lanes.LEAST)])
def test_much_work_on_small_images_has_two_lanes(kernels, model, least, work, samples, expected):
    trainer = xpnn.Trainer(MODELS[model], backend="numpy", seed=1).build((12, 12, 1))
    if model == "per-sample":
        assert trainer.executor.sample_work == (10 * 10 * 9 * 8 + 5 * 5 * 8 * 5) / 6
    trainer.executor.sample_work = work * least / 70
    assert trainer.executor._count(samples) == (expected if kernels == "plain" else 1)


@pytest.mark.parametrize(("work", "expected"), [(1, [35, 35]), (0.9, [70])])
@pytest.mark.parametrize("model", MODELS)
def test_much_work_is_predicted_in_two_lanes(monkeypatch, model, work, expected):
    monkeypatch.setenv("XPNN_KERNELS", "plain")
    trainer, seen = xpnn.Trainer(MODELS[model], backend="numpy", seed=1).build((12, 12, 1)), []
    trainer.executor.sample_work = work * lanes.LEAST_HELPED / 70
    predicted = trainer.executor._predicted
    monkeypatch.setattr(trainer.executor, "_predicted", lambda w, s, x: (seen.append(len(x)), predicted(w, s, x))[1])
    trainer.predict(IMAGES)
    assert seen == expected


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("samples", [1, 3, 4, 5, 31, 32, 33, 64, 70])
def test_gradient_is_that_of_the_whole_batch(monkeypatch, samples, model):
    results = []
    for kernels in (os.environ.get("XPNN_KERNELS", ""), "standard"):
        monkeypatch.setenv("XPNN_KERNELS", kernels)
        trainer = xpnn.Trainer(MODELS[model], backend="numpy", dtype="float64", seed=1).build((12, 12, 1))
        draws = trainer._draws(0, samples)
        x, y = IMAGES[:samples].astype("float64"), LABELS[:samples]
        results.append(trainer.executor.gradient(trainer._state, x, y, draws, 1 / samples))
    (flat, stats, loss, right), (flat2, stats2, loss2, right2) = results
    np.testing.assert_allclose(flat, flat2, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(loss, loss2, rtol=1e-12)
    assert right == right2
    assert stats.keys() == stats2.keys()
    for path, a in stats.items():
        np.testing.assert_allclose(a, stats2[path], rtol=1e-12)


def test_weights_are_prepared_once_for_a_state():
    trainer = xpnn.Trainer(JOINED, backend="numpy", seed=1).build(IMAGES.shape[1:])
    executor, first = trainer.executor, trainer._state
    trainer.fit(IMAGES, LABELS, epochs=1, batch_size=35)
    second = trainer._state
    states = first, second, {**first, "stats": second["stats"]}
    expected = [executor._predicted(Executor.prepared(executor, s), s["stats"], IMAGES) for s in states]
    assert not np.array_equal(expected[0], expected[2])
    for i in (0, 1, 1, 2, 0):
        np.testing.assert_allclose(executor.predict(states[i], IMAGES), expected[i], rtol=1e-5, atol=1e-6)
        assert executor.prepared(states[i]) is executor.prepared(dict(states[i]))
    trainer.fit(IMAGES, LABELS, epochs=1, batch_size=35)
    assert executor._prepared is None  # an old state is not kept


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("clip", [None, 0.01])
def test_an_update_in_chunks_is_that_of_the_whole(monkeypatch, clip):
    """Also of an optimizer that looks at all weights together, which must not be cut."""

    class Normed(xpnn.optim.SGD):
        elementwise = False

        def update(self, ops, weights, gradient, moments, scalars):
            assert gradient.shape == (weights.size,)
            return super().update(ops, weights, gradient / np.sqrt(np.sum(gradient**2)), moments, scalars)

    for optimizer in (xpnn.optim.AdamW(1e-2, clip_norm=clip), Normed(1e-2, momentum=0.9, clip_norm=clip)):
        results = []
        for chunk in (100, 1 << 20):
            monkeypatch.setattr(executor, "CHUNK", chunk)
            results.append(bits(*trained(MODEL, optimizer=optimizer)))
        assert_same_bits(*results)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("values", "expected"),
    [([3e38, 3e38, -1.0], True), ([3e38, float("inf")], False), ([float("inf"), -float("inf")], False),
     ([float("nan"), 1.0], False), ([], True)],
)  # fmt: skip
def test_weights_whose_sum_alone_overflows_are_finite(values, expected):
    with np.errstate(over="ignore", invalid="ignore"):
        assert executor._finite(np.asarray(values, np.float32)) is expected


def test_a_model_that_ties_samples_together_in_its_own_way_is_not_cut():
    sizes = []

    class Own(Layer):
        def apply(self, weights, stats, x, run):
            sizes.append(len(x))
            return x - np.mean(x, axis=0), {}, lambda dy, *, input_gradient=True: (dy - np.mean(dy, axis=0), {})

    trained(Sequential([Conv2D(4, 3), Own(), Flatten(), Dense(5)]))
    assert set(sizes) == {35}


class Broken(Layer):
    """Raises in the lane of the first image."""

    per_sample = True

    def apply(self, weights, stats, x, run):
        if run.training and (x == IMAGES[0]).all(axis=(1, 2, 3)).any():
            self.fail()
        return x, {}, lambda dy, *, input_gradient=True: (dy, {})

    def fail(self):
        raise OSError("no more memory")


class Interrupted(Broken):
    def fail(self):
        raise KeyboardInterrupt


class Mean(Layer):
    """A sample's result is its own; its statistic is of all samples."""

    per_sample = True

    def init(self, in_shape, stream):
        return {}, {"mean": np.zeros((), np.float32)}

    def apply(self, weights, stats, x, run):
        new = {"mean": np.mean(x, dtype=x.dtype)} if run.training else stats
        return x, new, lambda dy, *, input_gradient=True: (dy, {})


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("model", MODELS)
def test_a_statistic_of_ones_own_is_of_the_batch(model):
    trainer, _ = trained(Sequential([Mean(), *MODELS[model].layers]), batch_size=70)
    np.testing.assert_allclose(trainer.stats["0.mean"], IMAGES.mean(dtype=np.float64), rtol=1e-6)
    assert trainer.stats["0.mean"] == IMAGES.mean(dtype=IMAGES.dtype)  # of parts it would be near at the best


@pytest.mark.usefixtures("small")
def test_a_statistic_of_ones_own_is_no_reason_not_to_cut_predictions(kernels):
    sizes = []

    class Seen(Mean):
        def apply(self, weights, stats, x, run):
            sizes.append(len(x))
            return super().apply(weights, stats, x, run)

    xpnn.Trainer(Sequential([Seen(), *MODEL.layers]), backend="numpy").predict(IMAGES)
    assert max(sizes) < len(IMAGES)


class Joining(Layer):
    """Says that a sample's result is its own, and it is not."""

    per_sample = True

    def apply(self, weights, stats, x, run):
        total, n = run.ops.whole(x.sum(0), len(x)) if run.training else (0, 1)
        return x - total / n, {}, lambda dy, *, input_gradient=True: (dy, {})


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("samples", [3, 70])
def test_who_says_per_sample_does_not_ask_for_the_whole(samples):
    trainer = xpnn.Trainer(Sequential([Joining(), Flatten(), Dense(5)]), backend="numpy", seed=1)
    with pytest.raises(ValueError, match=r"a layer of .*Joining.* leave `per_sample` out there"):
        trainer.fit(IMAGES[:samples], LABELS[:samples], batch_size=70)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("threads", ["1", "2", "8"])
def test_an_error_in_a_lane_is_the_callers(monkeypatch, model, threads):
    """With its own traceback; nobody computes on, and the threads can be used again."""
    monkeypatch.setenv("XPNN_THREADS", threads)
    for layer, error in ((Broken(), OSError), (Interrupted(), KeyboardInterrupt)):
        trainer = xpnn.Trainer(Sequential([layer, *MODELS[model].layers]), backend="numpy", seed=1)
        with pytest.raises(error) as caught:
            trainer.fit(IMAGES, LABELS, batch_size=70)
        assert traceback.extract_tb(caught.tb)[-1].name == "fail"
        trainer.fit(IMAGES[1:], LABELS[1:], batch_size=69)


@pytest.mark.usefixtures("small")
def test_from_the_users_own_threads(monkeypatch):
    monkeypatch.setenv("XPNN_THREADS", "2")
    expected = {name: bits(*trained(model)) for name, model in MODELS.items()}
    found = {}

    def work(name):
        found[name] = bits(*trained(MODELS[name]))

    users = [threading.Thread(target=work, args=(name,)) for name in MODELS]
    for user in users:
        user.start()
    for user in users:
        user.join(60)
    for name in MODELS:
        assert_same_bits(found[name], expected[name])


def test_all_buffers_of_blas_are_written_to_first(monkeypatch):
    """By products at one time: each by itself would take the first buffer."""
    met, multiply = threading.Barrier(2, timeout=60), np.matmul

    def together(a, b, *args, **kwargs):
        if b.shape == (512, 1024):
            met.wait()
            seen.append(len(a))
        return multiply(a, b, *args, **kwargs)

    seen = []
    monkeypatch.setenv("XPNN_THREADS", "2")
    monkeypatch.setattr(np, "matmul", together)
    blas.touch_buffers.cache_clear()
    trainer = xpnn.Trainer(MODEL, backend="numpy")
    for _ in range(2):
        trainer.build(IMAGES.shape[1:]).predict(IMAGES)
    assert seen == [64, 64]


def test_no_thread_to_write_to_the_buffers_is_an_error(monkeypatch):
    """And no wait for ever of those that came."""
    begin, started = threading.Thread.start, []

    def one(thread):
        started.append(thread)
        if len(started) > 1:
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", one)
    with pytest.raises(RuntimeError, match="can't start"):
        blas.touch_buffers.__wrapped__(3)


TRAIN = """
import os, sys
import numpy as np
import xpnn
from xpnn_numpy import executor
executor.LANES = ((0, 8),)
rng = np.random.default_rng(0)
x, y = rng.random((64, 20, 20, 1), dtype="float32"), rng.integers(0, 10, 64)
trainer = xpnn.Trainer(xpnn.models.get("tiny-cnn"), backend="numpy")
trainer.fit(x, y, batch_size=64)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_trains():
    """Its parent's threads are not in it."""
    code = TRAIN + "child = os.fork()\ntrainer.fit(x, y, batch_size=64)\nchild and os._exit(os.waitpid(child, 0)[1])"
    environment = os.environ | {"XPNN_THREADS": "2", "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment)


@pytest.mark.skipif(os.name != "posix", reason="signals are sent in another way")
def test_ctrl_c_ends_it():
    listen = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"  # also in the background
    code = TRAIN + listen + "print('go', flush=True)\ntrainer.fit(x, y, batch_size=64, epochs=10**6)"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "go\n"
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()  # else a test that fails would wait for it for ever
    assert process.returncode != 0
    assert errors.splitlines()[-1].startswith("KeyboardInterrupt")


@pytest.mark.parametrize("turns", [1, 2, 3, 8])
def test_lanes_that_meet_compute_no_more_at_a_time_than_there_are_turns(turns):
    crew, meeting = lanes.Crew(turns), lanes.Meeting(8, turns)
    lock, at_work, most = threading.Lock(), set(), []

    def work(lane):
        found = []
        for round_ in range(20):
            with lock:
                at_work.add(lane)
                most.append(len(at_work))
            time.sleep(0.0002 * (lane % 3))
            with lock:
                at_work.remove(lane)
            found.append(meeting.whole(lane, np.asarray(lane * round_), 1))
        return found

    results = crew.together(work, meeting)
    assert results == [[(28 * round_, 8) for round_ in range(20)]] * 8
    assert max(most) <= turns


@pytest.mark.parametrize("bad", [0, 3])
def test_a_lane_that_fails_ends_those_that_wait_for_it(bad):
    crew, meeting, after = lanes.Crew(2), lanes.Meeting(4, 2), []

    def work(lane):
        meeting.whole(lane, np.zeros(1), 1)
        if lane == bad:
            raise ValueError("this one")
        meeting.whole(lane, np.zeros(1), 1)
        after.append(lane)

    with pytest.raises(ValueError, match="this one"):
        crew.together(work, meeting)
    assert not after


@pytest.mark.parametrize("often", [0, 2])
@pytest.mark.parametrize("late", [False, True])
def test_lanes_that_do_not_meet_equally_often_are_an_error(often, late):
    """Else some would wait for ever."""
    crew, meeting = lanes.Crew(4), lanes.Meeting(4, 4)

    def work(lane):
        time.sleep(0.05 * ((lane == 2) == late))  # the others wait for it already, or find that it is gone
        for _ in range(often if lane == 2 else 1):
            meeting.whole(lane, np.zeros(1), 1)

    end = threading.Timer(20, meeting.abort)  # else a test that fails would wait for ever
    end.start()
    try:
        with pytest.raises(ValueError, match=r"a layer that is `divisible` has to call it equally often"):
            crew.together(work, meeting)
    finally:
        end.cancel()


@pytest.mark.usefixtures("small")
def test_two_threads_with_one_executor():
    """Each with lanes that meet, of batches of their own."""
    one = xpnn.Trainer(JOINED, backend="numpy", seed=1).build((12, 12, 1))
    batches = [(IMAGES[:40], LABELS[:40]), (IMAGES[40:64], LABELS[40:64])]
    found = {}

    def gradients(i):
        images, labels = batches[i]
        for _ in range(20):
            flat = one.executor.gradient(one._state, images, labels, one._draws(0, len(images)), np.float32(0.1))[0]
            found.setdefault(i, []).append(flat)

    for i in range(2):
        gradients(i)
    alone, found = found, {}
    threads = [threading.Thread(target=gradients, args=(i,), daemon=True) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    for i in range(2):
        np.testing.assert_array_equal(found[i], alone[i])


def test_an_interrupt_while_lanes_are_handed_out():
    """Those that are under way do not wait for ever for those that never will be."""
    crew, meeting, sent = lanes.Crew(2), lanes.Meeting(4, 2), []
    submit = crew.helpers.submit

    def interrupted(work):
        if sent:
            raise KeyboardInterrupt
        sent.append(submit(work))
        return sent[0]

    crew.helpers.submit = interrupted
    with pytest.raises(KeyboardInterrupt):
        crew.together(lambda lane: meeting.whole(lane, np.zeros(1), 1), meeting)
    sent[0].result(timeout=20)


def blas_threads():
    """Of NumPy's BLAS; another library may have loaded one of its own since."""
    from threadpoolctl import threadpool_info

    libraries = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    numpys = [pool for pool in libraries if "numpy" in pool["filepath"]]
    return [pool["num_threads"] for pool in numpys or libraries]


def test_blas_gets_its_threads_back():
    before = blas_threads()
    inside, leave = threading.Event(), threading.Event()

    def other():
        with blas.one_blas_thread():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with blas.one_blas_thread():
        thread.start()
        assert inside.wait(10)
        assert set(blas_threads()) == {1}
    assert set(blas_threads()) == {1}  # the other is still inside
    leave.set()
    thread.join()
    assert blas_threads() == before
    with pytest.raises(KeyError), blas.one_blas_thread():
        raise KeyError
    assert blas_threads() == before


def test_who_comes_after_a_session_may_limit_blas():
    """threadpoolctl heeds one thread at a time: the session's own, until it is told that this one has left."""
    from threadpoolctl import threadpool_limits

    with blas.one_blas_thread():
        pass
    free = blas_threads()
    if max(free, default=1) < 2:
        pytest.skip("BLAS has one thread here")
    with threadpool_limits(1, user_api="blas"):
        assert set(blas_threads()) == {1}
    assert blas_threads() == free


def test_who_could_not_limit_blas_has_left(monkeypatch):
    def limit(**options):
        raise KeyError

    monkeypatch.setattr(blas._blas.controller, "limit", limit)
    with pytest.raises(KeyError), blas.one_blas_thread():
        pass
    monkeypatch.undo()
    assert blas._blas.inside == 0
    with blas.one_blas_thread():
        assert set(blas_threads()) == {1}


@pytest.mark.parametrize("value", ["0", "two", "-1"])
def test_a_wrong_number_of_threads_is_refused(monkeypatch, value):
    monkeypatch.setenv("XPNN_THREADS", value)
    with pytest.raises(ValueError, match=r"XPNN_THREADS=.*positive integer"):
        trained(MODEL)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 3),
        ({"cpu.max": "max 100000"}, 3),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu.max": "900000 100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 3),
    ],
)
def test_threads_follow_the_cores_that_may_be_used(monkeypatch, tmp_path, files, expected):
    monkeypatch.delenv("XPNN_THREADS", raising=False)
    monkeypatch.setattr(lanes.os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert lanes.threads(tmp_path) == expected
