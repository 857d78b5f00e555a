"""Random numbers, drawn on the host from raw bits of Philox (Salmon et al., *Parallel random numbers: as easy
as 1, 2, 3*, 2011) and handed to the device.

A stream is named by a seed, a purpose and a path ("weights", "0.weight"), and any place in it can be read
without reading what lies before. So a draw depends on neither the backend nor the order of the draws, the
number of threads or the way a batch is cut, and a run that is resumed draws what it would have drawn.
Only integer operations and exact scalings touch the bits; `normal` alone needs `log` and `cos`, whose last
bit may differ from one machine to another.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from math import pi, prod

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Stream:
    """One stream of random words."""

    seed: int
    purpose: str
    path: str = ""

    def child(self, name: str) -> Stream:
        """The stream of a part, e.g. of layer `name` of a model."""
        return Stream(self.seed, self.purpose, f"{self.path}.{name}" if self.path else name)

    def words(self, start: int, count: int) -> NDArray[np.uint64]:
        """The 64-bit words `start … start + count` of the stream."""
        name = f"{self.seed}/{self.purpose}/{self.path}".encode()
        key = int.from_bytes(blake2b(name, digest_size=16).digest(), "little")
        skipped = start % 4  # Philox4x64 makes four words from each value of its counter
        bits = np.random.Philox(key=key, counter=start // 4)
        return bits.random_raw(skipped + count)[skipped:].astype(np.uint64, copy=False)

    def uniform(self, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> NDArray[np.float64]:
        """Numbers in [low, high), multiples of 2⁻²⁴ before scaling, so that float32 keeps them apart."""
        unit = (self.words(0, prod(shape)) >> np.uint64(40)).astype(np.float64) * 2.0**-24
        return (low + (high - low) * unit).reshape(shape)

    def normal(self, shape: tuple[int, ...], deviation: float = 1.0) -> NDArray[np.float64]:
        """Normal numbers of mean 0 (Box, Muller, 1958)."""
        pairs = (self.words(0, 2 * prod(shape)) >> np.uint64(11)).reshape(2, -1).astype(np.float64) * 2.0**-53
        radius: NDArray[np.float64] = deviation * np.sqrt(-2 * np.log1p(-pairs[0]))
        values: NDArray[np.float64] = radius * np.cos(2 * pi * pairs[1])
        return values.reshape(shape)

    def permutation(self, n: int) -> NDArray[np.int64]:
        """The numbers 0 … n-1 in random order."""
        return np.argsort(self.words(0, n), kind="stable").astype(np.int64, copy=False)

    def mask(self, first_sample: int, samples: int, shape: tuple[int, ...], probability: float) -> NDArray[np.bool_]:
        """For each of `samples` samples, numbered from `first_sample`, a mask `shape`, true with `probability`.

        A sample's mask depends on its number alone: each owns so many whole words of the stream.
        """
        count = prod(shape)
        words_each = -(-count // 2)  # a word gives two 32-bit draws
        bits = self.words(first_sample * words_each, samples * words_each)
        halves = np.stack([bits & np.uint64(0xFFFFFFFF), bits >> np.uint64(32)], axis=-1)
        draws = halves.reshape(samples, 2 * words_each)[:, :count]
        return (draws < np.uint64(round(probability * 2**32))).reshape(samples, *shape)
