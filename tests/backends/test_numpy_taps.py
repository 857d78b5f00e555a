"""The gradient of an input, tap by tap: with samples beside each other or not, and one or two pixels at a time."""

import numpy as np
import pytest
from xpnn_numpy.kernels import _taps
from xpnn_numpy.kernels._taps import of_taps
from xpnn_numpy.kernels._windows import Windows
from xpnn_numpy.kernels.convolution import cut

from xpnn.ops import Ops
from xpnn.ops._window import window

BESIDE, PAIRS = "samples beside each other", "pairs of pixels"

GEOMETRIES = {  # input, kernel, stride, dilation: what is done
    ((3, 14, 14, 6), (16, 5, 5), 1, 1): [PAIRS, BESIDE],
    ((3, 12, 2), (4, 3), 1, 1): [BESIDE],
    ((2, 4, 5, 6, 3), (4, 2, 1, 3), 1, 1): [PAIRS, BESIDE],
    ((2, 6, 40, 11), (3, 3, 3), 1, 1): [PAIRS],
    ((3, 14, 14, 6), (4, 5, 4), 1, 1): [BESIDE],
    ((3, 14, 13, 6), (4, 3, 3), 1, 1): [BESIDE],
    ((3, 14, 14, 6), (4, 3, 3), 2, 1): [BESIDE],
    ((3, 14, 14, 6), (4, 3, 3), (2, 1), 1): [PAIRS, BESIDE],
    ((3, 14, 14, 6), (4, 3, 3), (1, 2), 1): [BESIDE],
    ((3, 14, 14, 6), (4, 3, 3), 1, (1, 2)): [BESIDE],
    ((3, 14, 14, 6), (4, 3, 3), 1, (2, 1)): [PAIRS, BESIDE],
    ((3, 14, 14, 6), (4, 3, 1), 1, 1): [BESIDE],
    ((3, 10, 10, 12), (4, 3, 3), 1, 1): [BESIDE],
    ((2, 8, 9, 16), (4, 3, 3), 1, 1): [BESIDE],
    ((2, 8, 10, 16), (4, 3, 3), 1, 1): [],
    ((2, 8, 8, 3), (4, 2, 2), 2, 1): [],
    ((2, 8, 9, 3), (4, 1, 1), (2, 3), 1): [],
    ((1, 6, 6, 2), (3, 3, 3), 1, 1): [PAIRS, BESIDE],
    ((0, 6, 6, 2), (3, 3, 3), 1, 1): [PAIRS, BESIDE],
}  # fmt: skip


@pytest.mark.parametrize("column_bytes", [1, 600, 1 << 30], ids="blocks of {} bytes".format)
@pytest.mark.parametrize(("geometry", "done"), GEOMETRIES.items(), ids=str)
def test_each_share_is_added_where_its_tap_read(geometry, done, column_bytes, monkeypatch):
    shape, (c_out, *size), stride, dilation = geometry
    n, *spatial, channels = shape
    w, rng = window("test", tuple(spatial), tuple(size), stride, "valid", dilation), np.random.default_rng(0)
    x, weight = rng.standard_normal(shape), rng.standard_normal((c_out, *size, channels))
    dy = rng.standard_normal((n, *w.out, c_out))
    expected, _, _ = Ops({}).conv(x, weight, stride=stride, dilation=dilation)[1](dy)
    seen = []
    for name, kind in (("_paired", PAIRS), ("_add_beside", BESIDE)):
        monkeypatch.setattr(_taps, name, noting(getattr(_taps, name), seen, kind))
    dx = of_taps(cut(dy, Windows(x, w), column_bytes), w, weight, n)
    assert list(dict.fromkeys(seen)) == (done if n else done[:1])
    assert dx.shape == shape
    np.testing.assert_allclose(dx, expected, rtol=1e-12, atol=1e-12)


def noting(f, seen, kind):
    def noted(*args):
        seen.append(kind)
        return f(*args)

    return noted
