"""Windows that lie side by side and cover an image, of up to three axes; a thread takes one, and W of its channels."""

from __future__ import annotations

PLACE = """
struct Place { unsigned channel, first, row, plane; };  // distances in the image, in packs

__device__ Place place(unsigned i, unsigned packs, unsigned out1, unsigned out2, unsigned k0, unsigned k1, unsigned k2)
{
    Place p;
    p.channel = i % packs; i /= packs;
    const unsigned o2 = i % out2; i /= out2;
    const unsigned o1 = i % out1; i /= out1;  // what is left counts samples and places on the first axis
    p.row = out2 * k2 * packs;
    p.plane = out1 * k1 * p.row;
    p.first = i * k0 * p.plane + o1 * k1 * p.row + o2 * k2 * packs + p.channel;
    return p;
}
"""


def sizes(out: tuple[int, ...], size: tuple[int, ...]) -> tuple[int, ...]:
    """What `place` is told of so many windows of this size: out1, out2, k0, k1, k2."""
    ones = (1,) * (3 - len(out))
    return *(ones + out)[1:], *ones, *size
