"""Schedules: their closed forms, their ends, and what they say where they cannot be used."""

from math import cos, pi

import pytest

from xpnn.optim import SCHEDULES, Constant, Cosine, OneCycle, OnPlateau, Progress, Schedule, Step, WarmUp


def factors(schedule, total=11, per_epoch=4, known=True):
    return [schedule(Progress(i, total if known else None, i // per_epoch)) for i in range(total)]


def test_constant():
    assert factors(Constant()) == [1.0] * 11


def test_step_falls_after_each_so_many_epochs():
    assert factors(Step(1, 0.5)) == [1.0] * 4 + [0.5] * 4 + [0.25] * 3
    assert factors(Step(2)) == [1.0] * 8 + [0.1] * 3


def test_cosine():
    assert factors(Cosine(), 5) == pytest.approx([1, (1 + cos(pi / 4)) / 2, 0.5, (1 - cos(pi / 4)) / 2, 0], abs=1e-15)
    assert factors(Cosine(0.2), 5) == pytest.approx([0.2 + 0.8 * f for f in factors(Cosine(), 5)])


def test_warm_up_rises_and_hands_over():
    assert factors(WarmUp(4), 6) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    rise = [0.25, 0.5, 0.75] + [1.0] * 8
    assert factors(WarmUp(4, Cosine())) == pytest.approx([a * b for a, b in zip(rise, factors(Cosine()), strict=True)])
    assert factors(WarmUp(1)) == [1.0] * 11


def test_one_cycle():
    found = factors(OneCycle(rise=0.4, start=0.1, final=0.01))
    up = [0.1 + 0.9 * (1 - cos(pi * i / 4)) / 2 for i in range(5)]
    down = [0.01 + 0.99 * (1 + cos(pi * i / 6)) / 2 for i in range(7)]
    assert found == pytest.approx(up + down[1:])
    assert found[4] == 1.0


def test_one_cycle_without_a_rise():
    assert factors(OneCycle(rise=0.0, final=0.0)) == pytest.approx(factors(Cosine()))


@pytest.mark.parametrize(
    ("schedule", "first", "last"),
    [
        (Constant(), 1, 1),
        (Cosine(), 1, 0),
        (Cosine(0.3), 1, 0.3),
        (OneCycle(), 0.04, 1e-4),
        (WarmUp(5), 0.2, 1),
        (WarmUp(5, Cosine(0.5)), 0.2, 0.5),
    ],
    ids=repr,
)
@pytest.mark.parametrize("total", [10, 1000])
def test_ends(schedule, first, last, total):
    found = factors(schedule, total)
    assert (found[0], found[-1]) == pytest.approx((first, last), abs=1e-12)
    assert max(found) <= 1
    if total == 1000:
        assert max(found) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("schedule", [Cosine(), OneCycle(), WarmUp(3, Cosine())], ids=repr)
def test_one_step_alone(schedule):
    assert 0 < schedule(Progress(0, 1)) <= 1


def test_plateaus_are_found_in_the_losses():
    def after(*losses, **options):
        return OnPlateau(**{"factor": 0.5, "patience": 2} | options)(Progress(0, None, len(losses), losses))

    assert after() == after(1.0) == after(1.0, 1.0, 1.0) == 1.0
    assert after(1.0, 1.0, 1.0, 1.0) == 0.5  # the third without a new best
    assert after(1.0, 1.1, 1.2, 0.9, 0.9, 0.9) == 1.0  # a new best begins anew
    assert after(1.0, 1.1, 1.2, 0.9, 0.9, 0.9, 0.9) == 0.5
    assert after(*[1.0] * 7) == 0.25  # and the patience is had once more after a fall
    assert after(*[1.0] * 6) == 0.5
    assert after(3.0, 2.0, 1.0, 0.5) == 1.0
    assert after(1.0, 0.99995, 0.99993, 0.99991) == 0.5  # less than `least` does not count
    assert after(1.0, 0.99995, 0.99993, 0.99991, least=0.0) == 1.0
    assert after(1.0, 1.0, patience=0) == 0.5
    assert after(1.0, float("nan"), float("nan"), float("nan")) == 0.5


@pytest.mark.parametrize("schedule", [Cosine(), OneCycle(), WarmUp(2, Cosine())], ids=repr)
def test_an_unknown_length(schedule):
    name = "Cosine" if isinstance(schedule, WarmUp) else type(schedule).__name__
    message = f"{name} needs to know how many steps there will be; give a source of batches with a length"
    with pytest.raises(ValueError, match=message):
        factors(schedule, known=False)


@pytest.mark.parametrize("schedule", [Constant(), Step(2), WarmUp(4), OnPlateau()], ids=repr)
def test_an_unknown_length_is_no_matter(schedule):
    assert factors(schedule, known=False) == factors(schedule)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Step, {"epochs": 0}, "Step: epochs=0; expected an integer ≥ 1"),
        (Step, {"epochs": 1.5}, r"Step: epochs=1\.5; expected an integer"),
        (Step, {"epochs": 1, "factor": -1}, "Step: factor=-1; expected a number ≥ 0"),
        (Cosine, {"final": -0.1}, r"Cosine: final=-0\.1; expected a number ≥ 0"),
        (WarmUp, {"steps": 0}, "WarmUp: steps=0; expected an integer ≥ 1"),
        (OneCycle, {"rise": 1.0}, r"OneCycle: rise=1\.0; expected a number ≥ 0 and below 1"),
        (OneCycle, {"start": float("nan")}, "OneCycle: start=nan; expected a number"),
        (OnPlateau, {"patience": -1}, "OnPlateau: patience=-1; expected an integer ≥ 0"),
        (OnPlateau, {"factor": None}, "OnPlateau: factor=None; expected a number"),
    ],
)
def test_numbers_that_make_no_sense(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_all_are_known_by_name():
    """Files store them so."""
    assert set(SCHEDULES.values()) == set(Schedule.__subclasses__())
