"""Helper processes: the bits of threads, and nothing lost where a helper is."""

import errno
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from math import inf
from pathlib import Path

import numpy as np
import pytest
from pieces import IMAGES, LABELS, MODELS, assert_same_bits, bits
from xpnn_numpy import executor as executors
from xpnn_numpy import helpers as module
from xpnn_numpy.helpers import Channel, Helpers, Lost
from xpnn_numpy.lanes import Crew, Meeting

import xpnn
from xpnn.bench import machine
from xpnn.layers import BatchNorm, Dense, Flatten, ReLU, Sequential

pytestmark = pytest.mark.skipif(not module.POSSIBLE, reason="no helpers can be started here")


@pytest.fixture
def helpers(monkeypatch):
    """Those of this process, started at once; and eight lanes for any batch of eight."""
    own = Helpers()
    own.computed = inf
    monkeypatch.setattr(executors, "helpers", own)
    monkeypatch.setattr(executors, "LANES", ((0, 8),))
    for limit in ("PIECE_BYTES", "PLAYED_BYTES"):
        monkeypatch.setattr(executors, limit, 4 * 8 * 10 * 10 * 4)
    monkeypatch.setenv("XPNN_KERNELS", "plain")
    monkeypatch.setenv("XPNN_THREADS", "3")
    yield own
    own.end()


def trainer_of(model):
    return xpnn.Trainer(model, backend="numpy", seed=1).build((12, 12, 1))


def come(helpers, trainer):
    """Wait until they are there; nothing is trained meanwhile."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with helpers.lent(trainer.executor, 2) as lent:
            if lent:
                return lent
        time.sleep(0.01)
    raise AssertionError("no helper has come")


def fitted(trainer, **options):
    return bits(trainer, trainer.fit(IMAGES, LABELS, epochs=2, batch_size=35, **options))


@pytest.fixture
def asked(monkeypatch):
    """What helpers are asked for; "seen": without the weights."""
    found, hand = [], Channel.hand

    def noting(channel, what, *arrays):
        found.append("seen" if what[0] == "scores" and not what[-1] else what[0])
        hand(channel, what, *arrays)

    monkeypatch.setattr(Channel, "hand", noting)
    return found


@pytest.mark.parametrize(("threads", "lanes"), [(2, 8), (3, 8), (2, 2)])  # also one lane each
@pytest.mark.parametrize("model", MODELS)
def test_the_bits_of_threads(helpers, asked, monkeypatch, model, threads, lanes):
    monkeypatch.setattr(executors, "LANES", ((0, lanes),))
    monkeypatch.setenv("XPNN_THREADS", str(threads))
    trainer = trainer_of(MODELS[model])
    come(helpers, trainer)
    found = fitted(trainer)
    assert asked.count("lanes") == 4 * (threads - 1)
    assert asked.count("scores") == threads - 1
    assert len(helpers.all) == 2  # none has failed, whose part threads would do
    monkeypatch.setenv("XPNN_THREADS", "1")
    del asked[:]
    assert_same_bits(found, fitted(trainer_of(MODELS[model])))
    assert not asked


@pytest.mark.parametrize("model", MODELS)
def test_the_gradient_for_who_asks_for_it_alone(helpers, model):
    """With a number as its scale."""
    trainer = trainer_of(MODELS[model])
    given = trainer._state, IMAGES, LABELS, trainer._draws(0, 70), 1 / 70
    expected = trainer.executor.gradient(*given)
    come(helpers, trainer)
    found = trainer.executor.gradient(*given)
    for one, other in zip((found[0], *found[1].values()), (expected[0], *expected[1].values()), strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(helpers.all) == 2  # none has failed, whose part threads would do


def test_weights_are_shown_once(helpers, asked, monkeypatch):
    """For as many predictions as they hold."""
    monkeypatch.setenv("XPNN_THREADS", "2")
    alone, trainer = trainer_of(MODELS["per-sample"]), trainer_of(MODELS["per-sample"])
    other = xpnn.Trainer(MODELS["per-sample"], backend="numpy", seed=2).build((12, 12, 1))
    others = other.predict(IMAGES[:35])
    come(helpers, trainer)
    come(helpers, other)
    for steps in (["scores", "seen"], ["lanes", "scores", "seen"]):
        del asked[:]
        if "lanes" in steps:
            trainer.fit(IMAGES[:35], LABELS[:35], batch_size=35)
        found = [trainer.predict(IMAGES[:35]) for _ in range(2)]
        assert asked == steps
        with monkeypatch.context() as changed:
            changed.setenv("XPNN_THREADS", "1")
            if "lanes" in steps:
                alone.fit(IMAGES[:35], LABELS[:35], batch_size=35)
            for scores in found:
                np.testing.assert_array_equal(scores, alone.predict(IMAGES[:35]))
    for one, expected in ((other, others), (trainer, found[0])):
        np.testing.assert_array_equal(one.predict(IMAGES[:35]), expected)
    other.fit(IMAGES[:35], LABELS[:35], batch_size=35)  # for which helpers let the weights go
    np.testing.assert_array_equal(trainer.predict(IMAGES[:35]), found[0])
    assert asked[-2:] == ["lanes", "scores"]
    assert len(helpers.all) == 2  # none has failed, whose part threads would do


def test_weights_are_kept_where_more_images_do_not_reach(helpers, asked):
    trainer = trainer_of(MODELS["per-sample"])
    expected = trainer.predict(IMAGES)
    come(helpers, trainer)
    del asked[:]
    trainer.predict(IMAGES[:8])
    np.testing.assert_array_equal(trainer.predict(IMAGES), expected)
    assert asked == ["scores"] * 2 + ["seen"] * 2


@pytest.mark.parametrize("slow", ["here", "there", "neither"])
def test_who_is_quicker_predicts_more(helpers, monkeypatch, slow):
    """Some of the pieces go to whoever asks next; each is computed once."""
    monkeypatch.setenv("XPNN_THREADS", "2")
    images = np.tile(IMAGES, (8, 1, 1, 1))
    trainer = trainer_of(MODELS["per-sample"])
    expected = trainer.predict(images, batch_size=len(images))
    (helper, *_), executor = come(helpers, trainer), trainer.executor
    here, there, deal, answer = [], [], executor.dealt, helper.answer

    def dealt(*given):
        until = time.monotonic() + 60
        while slow == "here" and select.select([helpers.deal.reading], [], [], 0)[0]:  # there is some left
            assert time.monotonic() < until
            time.sleep(0.01)
        found = deal(*given)
        here.extend(found)
        helper.process.send_signal(signal.SIGCONT)
        return found

    def answered(expected):
        numbers, arrays = answer(expected)
        there.extend(numbers)
        return numbers, arrays

    monkeypatch.setattr(executor, "dealt", dealt)
    monkeypatch.setattr(helper, "answer", answered)
    for _ in range(3):
        if slow == "there":
            helper.process.send_signal(signal.SIGSTOP)
        np.testing.assert_array_equal(trainer.predict(images, batch_size=len(images)), expected)
    assert sorted(here + there) == sorted(3 * [*range(36)])
    if slow != "neither":
        assert (here, there) == (([], there) if slow == "here" else (here, []))
    assert len(helpers.all) == 2  # none has failed, whose part threads would do


@pytest.mark.parametrize(("pieces", "processes", "own"), [
    (2, 2, 1), (3, 2, 1), (4, 2, 2), (8, 2, 3), (16, 2, 6), (8, 3, 2), (8, 8, 1), (64, 8, 6), (3, 3, 1),
    (4096, 2, 1920),
])  # fmt: skip
def test_a_quarter_of_the_pieces_is_dealt_at_the_most(pieces, processes, own):
    cuts = executors._cuts(5 * pieces + 1, pieces)
    shares = executors._shares(cuts, processes)
    assert [len(its) - 1 for _, its in shares] == [own] * processes + [pieces - own * processes]
    found = []
    for part, its in shares:
        assert its[-1] == part.stop - part.start
        found += [part.start + at for at in its[:-1]]
    assert (*found, part.stop) == cuts


def test_nothing_that_was_dealt_is_left_over(helpers, monkeypatch):
    """Nor is a file, where they have ended."""
    images = np.tile(IMAGES, (8, 1, 1, 1))
    trainer = trainer_of(MODELS["per-sample"])
    expected = trainer.predict(images)
    come(helpers, trainer)
    files = helpers.deal.reading, helpers.deal.writing
    with monkeypatch.context() as patch:
        patch.setattr(trainer.executor, "dealt", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trainer.predict(images)
    for file in files:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(file)
    helpers.computed = inf
    come(helpers, trainer)
    np.testing.assert_array_equal(trainer.predict(images), expected)
    assert len(helpers.all) == 2


def test_weights_are_let_go_for_training(helpers):
    trainer = trainer_of(MODELS["per-sample"])
    come(helpers, trainer)
    trainer.predict(IMAGES[:35])
    trainer.fit(IMAGES[:35], LABELS[:35], batch_size=35)
    with helpers.lent(trainer.executor, 2) as lent:
        lent[0].channel.hand(("scores", helpers.known[trainer.executor], (0, 4), (0,), []), IMAGES[:4], IMAGES[:0])
        with pytest.raises(Lost, match="TypeError"):
            lent[0].answer("done")


def test_who_only_predicts_is_helped(helpers, asked, monkeypatch):
    """Whose weights have had a number before there was a helper."""
    monkeypatch.setattr(executors, "versions", count(1))
    trainer = trainer_of(MODELS["per-sample"])
    expected = trainer.predict(IMAGES[:35])
    come(helpers, trainer)
    del asked[:]
    for _ in range(2):
        np.testing.assert_array_equal(trainer.predict(IMAGES[:35]), expected)
    assert asked == ["scores", "scores", "seen", "seen"]
    assert len(helpers.all) == 2


def test_a_forked_process_gives_no_number_twice(helpers):
    """Its executors keep theirs."""
    one, other = (trainer_of(MODELS["per-sample"]) for _ in range(2))
    one.predict(IMAGES[:35])
    helpers.forget()  # as a child does
    other.predict(IMAGES[:35])
    assert other.executor._prepared.version > one.executor._prepared.version


def test_they_come_after_some_time_alone(helpers):
    helpers.computed, helpers.patience = 0.0, 0.05
    trainer = trainer_of(MODELS["per-sample"])
    trainer.predict(IMAGES[:8])
    assert not helpers.all
    until = time.monotonic() + 60
    while not helpers.known and time.monotonic() < until:
        trainer.fit(IMAGES, LABELS, batch_size=35)
    assert len(helpers.all) == 2


@pytest.mark.parametrize("model", MODELS)
def test_one_that_is_killed_changes_nothing(helpers, asked, model):
    """Whatever it was doing: those of its process take its lanes, and after a while there are new ones."""
    expected = fitted(trainer_of(MODELS[model]))
    trainer = trainer_of(MODELS[model])
    victim = come(helpers, trainer)[1].process
    os.kill(victim.pid, signal.SIGSTOP)  # it sleeps in the middle of a step
    killer = threading.Timer(0.3, victim.kill)
    killer.start()
    assert_same_bits(fitted(trainer), expected)
    killer.join()
    assert "lanes" in asked
    assert not helpers.all
    helpers.computed = inf
    assert victim not in [helper.process for helper in come(helpers, trainer)]


def test_who_says_what_nobody_expects_is_lost(helpers):
    """Who went on would take one answer for another."""
    helper = come(helpers, trainer_of(MODELS["per-sample"]))[0]
    helper.channel.tell(("meet", 7, [], pickle.dumps(("no", "model"))))
    with pytest.raises(Lost):
        helper.answer("parts")


@pytest.mark.parametrize("seconds", [0.0, 0.001, 60.0])
def test_what_other_sockets_time_out_after_is_not_for_them(helpers, asked, seconds):
    """They sleep for longer than that, and than a message is waited for awake."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        trainer = trainer_of(MODELS["per-sample"])
        come(helpers, trainer)
    finally:
        socket.setdefaulttimeout(before)
    for _ in range(2):
        time.sleep(10 * module.AWAKE)
        trainer.predict(IMAGES)
    assert asked == ["scores"] * 2 + ["seen"] * 2
    assert len(helpers.all) == 2


def test_who_cannot_be_started_is_tried_again(helpers, monkeypatch):
    """And leaves no file open."""
    make, made = os.memfd_create, []

    def full(name):
        if made:
            raise OSError(errno.EMFILE, "Too many open files")
        made.append(make(name))
        return made[0]

    trainer = trainer_of(MODELS["per-sample"])
    with monkeypatch.context() as patch:
        patch.setattr(os, "memfd_create", full)
        with helpers.lent(trainer.executor, 2) as lent:
            assert not lent
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(made[0])
    assert (helpers.computed, helpers.patience) == (0, 8 * module.PATIENCE)
    helpers.computed = inf
    assert len(come(helpers, trainer)) == 2


@pytest.mark.parametrize("model", MODELS)
def test_an_interrupt_while_one_does_not_answer(helpers, asked, monkeypatch, model):
    """A thread waits for it, whom no interrupt reaches: where lanes meet, the main one is not the last to come."""
    trainer = trainer_of(MODELS[model])
    stopped = come(helpers, trainer)[1].process
    os.kill(stopped.pid, signal.SIGSTOP)
    main, wake = threading.get_ident(), signal.signal(signal.SIGINT, signal.default_int_handler)
    came, whole = threading.Event(), Meeting.whole

    def after_the_main_one(meeting, *args):
        if threading.get_ident() == main:
            came.set()
        came.wait(20)
        return whole(meeting, *args)

    monkeypatch.setattr(Meeting, "whole", after_the_main_one)
    monkeypatch.setattr(trainer.executor, "alone", Crew(8))
    timer = threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT))
    last = threading.Timer(20, stopped.kill)  # else a test that fails would wait for ever
    try:
        timer.start()
        last.start()
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            fitted(trainer)
        assert time.monotonic() - begun < 15
    finally:
        timer.cancel()
        last.cancel()
        signal.signal(signal.SIGINT, wake)
    assert "lanes" in asked
    assert not helpers.all


@pytest.mark.parametrize("model", MODELS)
def test_an_error_here_ends_them(helpers, asked, monkeypatch, model):
    trainer = trainer_of(MODELS[model])
    processes = [helper.process for helper in come(helpers, trainer)]
    monkeypatch.setattr(trainer.executor, "_right", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(IMAGES, LABELS, batch_size=35)
    assert asked == ["lanes"] * 2
    assert not helpers.all
    assert all(process.poll() is not None for process in processes)


@pytest.mark.parametrize("model", MODELS)
def test_what_fails_there_is_done_here(helpers, monkeypatch, model):
    """Where that fails too, the error is the caller's."""
    expected = fitted(trainer_of(MODELS[model]))
    trainer, hand, sent = trainer_of(MODELS[model]), Channel.hand, []
    come(helpers, trainer)

    def garbled(channel, what, *arrays):
        kind, number, *rest = what
        sent.append(kind)
        hand(channel, (kind, number + 1, *rest), *arrays)

    monkeypatch.setattr(Channel, "hand", garbled)
    assert_same_bits(fitted(trainer), expected)
    assert sent[0] == "lanes"


def test_classes_of_somebodys_own_are_not_theirs(helpers, asked, monkeypatch):
    """Their modules may not be elsewhere what they are here, and would be run once more."""

    @dataclass(frozen=True, repr=False)
    class Local(ReLU):
        pass

    elsewhere = types.ModuleType("a_module_without_a_file")
    monkeypatch.setitem(sys.modules, elsewhere.__name__, elsewhere)
    elsewhere.Elsewhere = dataclass(frozen=True, repr=False)(
        type("Elsewhere", (ReLU,), {"__module__": elsewhere.__name__})
    )
    come(helpers, trainer_of(MODELS["per-sample"]))
    for layer in (Local(), elsewhere.Elsewhere()):
        trainer = trainer_of(Sequential([Flatten(), layer, Dense(5)]))
        assert trainer.executor.recipe is None
        trainer.fit(IMAGES, LABELS, batch_size=35)
        assert trainer.executor not in helpers.known
        assert len(helpers.all) == 2
    assert not asked


def test_what_all_lanes_took_is_given_back_once(helpers, monkeypatch):
    """Else this process would hold on to memory for lanes that helpers compute from then on."""
    given = []
    monkeypatch.setattr(module, "_give_back", lambda: given.append(1))
    trainer = trainer_of(MODELS["per-sample"])
    come(helpers, trainer)
    trainer.fit(IMAGES, LABELS, batch_size=35)
    assert len(given) == 1


def test_one_that_cannot_make_the_executor_is_not_asked(helpers, asked, monkeypatch):
    trainer, other = trainer_of(MODELS["per-sample"]), trainer_of(MODELS["per-sample"])
    come(helpers, other)
    trainer.executor.recipe = pickle.dumps(("no", "model"))
    trainer.fit(IMAGES, LABELS, batch_size=35)
    assert helpers.known[trainer.executor] is None
    assert not asked
    other.fit(IMAGES, LABELS, batch_size=70)
    assert asked == ["lanes"] * 2


@pytest.mark.parametrize("name", ["kernels", "column_bytes"])
def test_a_backend_of_ones_own_is_not_theirs(helpers, name):
    trainer = trainer_of(MODELS["per-sample"])
    setattr(trainer.backend, name, {} if name == "kernels" else 3000)
    assert trainer.executor.recipe is None


def test_two_threads_in_turn_do_not_see_each_others_gradients(helpers):
    expected = fitted(trainer_of(MODELS["per-sample"]))
    trainers = [trainer_of(MODELS["per-sample"]) for _ in range(2)]
    for trainer in trainers:
        come(helpers, trainer)
        update = trainer.executor._update

        def slow(*args, update=update):
            time.sleep(0.005)  # the other has the helpers meanwhile
            return update(*args)

        trainer.executor._update = slow
    found = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: fitted(trainers[i])})) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for i in range(2):
        assert_same_bits(found[i], expected)


def test_sums_of_many_features(helpers, asked):
    """The messages of a meeting may be long."""
    model = Sequential([Flatten(), Dense(20_000), BatchNorm(), Dense(5)])
    trainer = trainer_of(model)
    come(helpers, trainer)
    trainer.fit(IMAGES[:16], LABELS[:16], batch_size=16)
    assert asked == ["lanes"] * 2
    assert len(helpers.all) == 2


def test_no_more_memory_is_no_error_of_the_caller(helpers, monkeypatch):
    expected, trainer = fitted(trainer_of(MODELS["per-sample"])), trainer_of(MODELS["per-sample"])
    come(helpers, trainer)

    def refused(*_):
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(os, "ftruncate", refused)
    assert_same_bits(fitted(trainer), expected)
    assert not helpers.all
    assert helpers.patience == 8 * module.PATIENCE


def test_an_interrupt_while_they_end(helpers, monkeypatch):
    """A second Ctrl-C: nothing is closed twice, for the numbers of files may be somebody else's by then."""
    come(helpers, trainer_of(MODELS["per-sample"]))
    ended = list(helpers.all)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            helpers.end()
    assert not helpers.all
    with open(os.devnull) as mine:
        for helper in ended:
            helper.end()
        os.fstat(mine.fileno())


def test_another_thread_does_without(helpers):
    trainer, other = trainer_of(MODELS["per-sample"]), trainer_of(MODELS["per-sample"])
    come(helpers, trainer)
    with helpers.lent(trainer.executor, 2) as lent:
        assert len(lent) == 2
        thread = threading.Thread(target=fitted, args=(other,))
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
        assert other.executor not in helpers.known


def test_more_helpers_know_what_the_first_ones_do(helpers, monkeypatch):
    trainer = trainer_of(MODELS["per-sample"])
    with helpers.lent(trainer.executor, 1):
        pass
    come(helpers, trainer)
    expected = trainer.predict(IMAGES)
    monkeypatch.setenv("XPNN_THREADS", "4")
    wider = trainer_of(MODELS["per-sample"])
    until = time.monotonic() + 60
    while wider.executor not in helpers.known and time.monotonic() < until:
        wider.predict(IMAGES)
    assert len(helpers.all) == 3
    np.testing.assert_array_equal(trainer.predict(IMAGES), expected)
    np.testing.assert_array_equal(wider.predict(IMAGES), expected)


START = """
import os, signal, time
from math import inf
import numpy as np
import xpnn
from xpnn_numpy.helpers import helpers
helpers.computed = inf
trainer = xpnn.Trainer(xpnn.models.get("article"), backend="numpy").build((28, 28, 1))
def come():
    for _ in range(6000):
        with helpers.lent(trainer.executor, 1) as lent:
            if lent:
                return lent[0].process.pid
        time.sleep(0.01)
"""


def run(code):
    environment = os.environ | {"XPNN_THREADS": "2", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, "-c", START + code], stdout=subprocess.PIPE, text=True, timeout=90, env=environment
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_has_none(helpers):
    done = run("""
pid, images = come(), np.zeros((4096, 28, 28, 1), np.float32)
expected, child = trainer.predict(images), os.fork()
same = np.array_equal(trainer.predict(images), expected)
if not child:
    os._exit(not same or bool(helpers.all))
assert os.waitpid(child, 0)[1] == 0
assert same and come() == pid
""")
    assert done.returncode == 0


def test_one_that_is_killed_ends_nobody(helpers):
    """Who writes to it gets no signal, which ends a program that does not handle it."""
    done = run("""
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
os.kill(come(), signal.SIGKILL)
time.sleep(0.3)
print(trainer.predict(np.zeros((4096, 28, 28, 1), np.float32)).shape)
""")
    assert (done.returncode, done.stdout) == (0, "(4096, 10)\n")


def test_they_end_with_who_started_them(helpers):
    done = run("print(come(), flush=True); os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == -signal.SIGKILL
    file, until = Path(f"/proc/{int(done.stdout)}/cmdline"), time.monotonic() + 20
    with suppress(OSError):  # it is gone
        while "xpnn_numpy" in file.read_text():  # what nobody waited for has no command
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.fixture
def channels():
    ends = socket.socketpair()
    a, b = os.memfd_create("a"), os.memfd_create("b")
    here, there = Channel(ends[0], a, b), Channel(ends[1], os.dup(b), os.dup(a))
    yield here, there
    here.close()
    there.close()


SHAPES = [(3,), (0, 4), (), (300, 200), (2,), (2,)]


def test_arrays_go_to_and_fro(channels):
    here, there = channels
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        arrays = rng.random(shape, np.float32), rng.integers(0, 9, 7)
        here.hand(("some", 1.5), *arrays)
        what, found = there.receive()
        assert what == ("some", 1.5)
        for one, other in zip(found, arrays, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        there.hand(None, *found)
        np.testing.assert_array_equal(here.receive()[1][0], arrays[0])


def test_of_a_message_like_the_last_only_numbers_are_sent(channels, monkeypatch):
    """As new arrays, each time: a recording does not copy the weights that it has seen."""
    here, there = channels
    sent, send = [], Channel._send

    def noting(channel, data):
        sent.append(len(data))
        send(channel, data)

    monkeypatch.setattr(Channel, "_send", noting)
    found = []
    for what, shape, dtype in [(1, 3, "f4"), (1, 3, "f4"), (2, 3, "f4"), (2, 3, "i4"), (2, 4, "i4"), (2, 4, "i4")]:
        numbers = np.arange(shape, dtype=dtype)[::-1] + len(sent)
        here.hand(what, numbers)
        its, (array,) = there.receive()
        assert (its, array.dtype) == (what, dtype)
        np.testing.assert_array_equal(array, numbers)
        assert not any(array is other for other in found)
        found.append(array)
    assert [size > 0 for size in sent] == [True, False, True, True, True, False]


def test_a_message_without_room_is_no_message_like_the_next(channels, monkeypatch):
    here, there = channels
    here.hand("some", np.arange(3))
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", lambda *_: (_ for _ in ()).throw(OSError))
        with pytest.raises(Lost):
            here.hand("more", np.arange(300_000))
    here.hand("some", np.arange(3, 6))
    assert there.receive()[0] == "some"
    np.testing.assert_array_equal(there.receive()[1][0], np.arange(3, 6))


def test_what_is_told_leaves_what_was_handed_over(channels):
    here, there = channels
    here.hand("some", np.arange(5))
    what, (kept,) = there.receive()
    here.tell(np.zeros(5))
    told, none = there.receive()
    np.testing.assert_array_equal(told, np.zeros(5))
    np.testing.assert_array_equal(kept, np.arange(5))
    assert (what, none) == ("some", [])
    here.hand("some", np.arange(5) + 1)
    assert there.receive()[0] == "some"
    np.testing.assert_array_equal(kept, np.arange(5) + 1)


def test_who_is_gone_is_lost(channels):
    here, there = channels
    there.line.close()
    with pytest.raises(Lost):
        here.tell("hello")
    with pytest.raises(Lost):
        here.receive()


def test_what_they_compute_is_not_what_others_do(helpers):
    """`xpnn bench` gives no ratio while others compute."""
    trainer = trainer_of(MODELS["per-sample"])
    come(helpers, trainer)
    before = sum(machine._children())
    until = time.monotonic() + 30
    while sum(machine._children()) <= before and time.monotonic() < until:
        trainer.predict(IMAGES)
    assert sum(machine._children()) > before
