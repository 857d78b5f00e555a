"""Data sets as NumPy arrays on the host: ``load("digits")``, ``load("mnist", data_dir)``.

What is where:

- ``dataset.py``: `Dataset`, the four arrays with their class names and their source;
- ``_digits.py`` and ``digits/``: the 1,797 digits of 8x8 pixels that come with the package;
- ``_mnist.py``: MNIST from its four original files, which you fetch;
- ``idx.py``: `read_idx`, the reader of those files.

Nothing is read before the first call.
"""

import difflib
import os
from collections.abc import Callable

from ._digits import digits
from ._mnist import mnist
from .dataset import Dataset

__all__ = ["Dataset", "digits", "load", "mnist"]

_LOADERS: dict[str, Callable[[str | os.PathLike[str] | None], Dataset]] = {
    "digits": lambda data_dir: digits(),
    "mnist": mnist,
}


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Return the data set called ``name``: ``"digits"`` or ``"mnist"``.

    ``data_dir`` is the folder of the sets that are read from files, see `mnist`; the digits come with the
    package and need none. Raises ValueError for an unknown name, and what the set's own loader raises.
    """
    if name not in _LOADERS:
        nearest = difflib.get_close_matches(name.lower(), _LOADERS, n=1, cutoff=0.4)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"There is no data set {name!r}; the known ones are {', '.join(_LOADERS)}.{hint}")
    return _LOADERS[name](data_dir)
