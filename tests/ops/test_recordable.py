"""Nothing is copied from the host in the middle of an op or a layer: a CUDA graph could not hold it, and it waits."""

import array_api_strict
import pytest

import xpnn.backend
from xpnn.parity import CASES, Placed


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_case_copies_from_the_host(case, monkeypatch):
    backend = xpnn.backend.get("strict")
    placed = Placed(case, backend, "float32")
    placed.results()  # it works; and what it was given is there from now on
    asarray = array_api_strict.asarray

    def refuse(x, *args, **options):
        assert isinstance(x, array_api_strict._array_object.Array), f"{case} copies {x!r} from the host"
        return asarray(x, *args, **options)

    monkeypatch.setattr(array_api_strict, "asarray", refuse)
    placed.results()
