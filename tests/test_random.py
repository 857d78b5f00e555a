"""Random streams: the bits of Philox, reachable at any place, the same for ever."""

from hashlib import blake2b, sha256
from itertools import pairwise

import numpy as np
import pytest

from xpnn.layers import Conv2D
from xpnn.random import Stream

STREAM = Stream(7, "weights", "0.weight")
WORD = (1 << 64) - 1


def philox(counter, key):
    """Philox4x64-10 in plain Python (Salmon et al., 2011, section 3.3): four words from a counter of four."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (p1 >> 64) ^ c1 ^ k0, p1 & WORD, (p0 >> 64) ^ c3 ^ k1, p0 & WORD
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & WORD, (k1 + 0xBB67AE8584CAA73B) & WORD
    return [c0, c1, c2, c3]


def words_by_hand(stream, start, count):
    name = f"{stream.seed}/{stream.purpose}/{stream.path}".encode()
    digest = blake2b(name, digest_size=16).digest()
    key = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
    blocks = range(start // 4, (start + count + 3) // 4)
    # NumPy raises its counter first, so that its block 0 is that of counter 1
    words = [w for b in blocks for w in philox(((b + 1) & WORD, (b + 1) >> 64, 0, 0), key)]
    return words[start % 4 : start % 4 + count]


def digest(array):
    return sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def test_philox_by_its_known_answers():
    """Those of the authors' library Random123, kat_vectors."""
    assert philox([0] * 4, [0] * 2) == [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert philox([WORD] * 4, [WORD] * 2) == [
        0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0,
    ]  # fmt: skip
    pi = [0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89]
    assert philox(pi, [0x452821E638D01377, 0xBE5466CF34E90C6C]) == [
        0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6,
    ]  # fmt: skip


@pytest.mark.parametrize("start", [0, 1, 3, 4, 1001, 2**40 + 2, 2**65])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 9])
def test_words(start, count):
    words = STREAM.words(start, count)
    assert words.dtype == np.uint64
    assert words.tolist() == words_by_hand(STREAM, start, count)


def test_any_place_can_be_read_alone():
    whole = STREAM.words(0, 200)
    for start in range(0, 60, 7):
        for count in (0, 1, 5, 64):
            np.testing.assert_array_equal(STREAM.words(start, count), whole[start : start + count])


def test_names_part_streams():
    streams = [
        STREAM, Stream(8, "weights", "0.weight"), Stream(7, "dropout", "0.weight"), Stream(7, "weights", "0.bias"),
        Stream(7, "weights"), Stream(7, "weights", "0"), Stream(77, "weights", "0.weight"),
        Stream(-7, "weights", "0.weight"),
    ]  # fmt: skip
    words = [tuple(s.words(0, 4).tolist()) for s in streams]
    assert len({w for four in words for w in four}) == 4 * len(streams)
    assert Stream(7, "weights").child("0").child("weight") == STREAM
    np.testing.assert_array_equal(STREAM.words(0, 4), Stream(7, "weights", "0.weight").words(0, 4))


def test_uniform():
    u = STREAM.uniform((100, 40))
    assert u.dtype == np.float64
    assert u.min() >= 0
    assert u.max() < 1
    np.testing.assert_array_equal(u * 2**24, np.round(u * 2**24))
    np.testing.assert_array_equal(u, u.astype(np.float32))
    np.testing.assert_array_equal(u.reshape(-1), (STREAM.words(0, 4000) >> np.uint64(40)) / 2**24)
    assert np.mean(u) == pytest.approx(0.5, abs=0.02)
    assert np.var(u) == pytest.approx(1 / 12, rel=0.05)
    assert np.histogram(u, 10, (0, 1))[0].min() > 330
    scaled = STREAM.uniform((100, 40), -3, 5)
    np.testing.assert_array_equal(scaled, -3 + 8 * u)
    assert STREAM.uniform(()).shape == ()
    assert STREAM.uniform((0, 3)).shape == (0, 3)


def test_normal():
    z = STREAM.normal((200, 100))
    assert z.dtype == np.float64
    assert np.isfinite(z).all()
    n = z.size
    assert abs(z.mean()) < 4 / np.sqrt(n)
    assert z.var() == pytest.approx(1, abs=4 * np.sqrt(2 / n))
    assert np.mean(z**3) == pytest.approx(0, abs=4 * np.sqrt(15 / n))
    assert np.mean(z**4) == pytest.approx(3, abs=4 * np.sqrt(96 / n))
    assert np.mean(np.abs(z) < 1) == pytest.approx(0.6827, abs=4 * np.sqrt(0.22 / n))
    assert abs(np.corrcoef(z.reshape(-1)[:-1], z.reshape(-1)[1:])[0, 1]) < 4 / np.sqrt(n)
    np.testing.assert_allclose(STREAM.normal((200, 100), 0.5), z / 2, rtol=1e-15)
    assert np.unique(z).size == n
    assert STREAM.normal((0,)).shape == (0,)


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_permutation(n):
    p = STREAM.permutation(n)
    assert p.dtype == np.int64
    assert sorted(p) == list(range(n))


def test_permutation_has_no_bias_for_a_place():
    first = [Stream(0, "order", str(epoch)).permutation(4)[0] for epoch in range(2000)]
    assert np.bincount(first).min() > 420


@pytest.mark.parametrize("shape", [(1,), (3,), (4,), (2, 3, 5), ()])
def test_mask_of_a_sample_is_its_own(shape):
    """However a batch is cut."""
    whole = STREAM.mask(100, 12, shape, 0.6)
    assert whole.shape == (12, *shape)
    assert whole.dtype == bool
    for cuts in ([0, 12], [0, 1, 2, 12], [0, 5, 5, 7, 12], list(range(13))):
        parts = [STREAM.mask(100 + a, b - a, shape, 0.6) for a, b in pairwise(cuts)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_mask():
    mask = STREAM.mask(0, 400, (5, 7), 0.3)
    assert mask.mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / mask.size))
    assert np.abs(mask.mean(axis=0) - 0.3).max() < 5 * np.sqrt(0.21 / 400)
    assert STREAM.mask(0, 50, (9,), 1.0).all()
    assert not STREAM.mask(0, 50, (9,), 0.0).any()
    # two draws to a word, the low half first
    words = STREAM.words(3 * 18, 18)
    draws = np.stack([words & np.uint64(2**32 - 1), words >> np.uint64(32)], axis=-1).reshape(-1)[:35]
    np.testing.assert_array_equal(mask[3].reshape(-1), draws < 0.3 * 2**32)
    wider = STREAM.mask(0, 400, (5, 7), 0.4)
    assert (wider | ~mask).all()  # the same draws, another threshold


def test_the_streams_never_change():
    """Runs are to be repeated years later; whoever changes these numbers breaks that."""
    found = {
        "words": digest(STREAM.words(5, 100).astype("<u8")),
        "uniform": digest(STREAM.uniform((10, 10), -1, 2).astype("<f8")),
        "permutation": digest(Stream(0, "order", "3").permutation(1000).astype("<i8")),
        "mask": digest(Stream(0, "dropout", "4.keep").mask(10**6, 20, (3, 5), 0.7)),
        "weights": digest(Conv2D(4, 3).init((8, 8, 2), Stream(0, "weights", "0"))[0]["weight"].astype("<f8")),
    }
    assert found == {
        "words": "4b71d131f59bcba6",
        "uniform": "b1227bfcc83a615f",
        "permutation": "04ab782641635e6a",
        "mask": "2a8ee23198eb0760",
        "weights": "8167c57630cbcd05",
    }
