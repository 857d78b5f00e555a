"""What every op asks of the arrays it is given: one namespace, one floating dtype, one device."""

from __future__ import annotations

from functools import cache
from typing import Any

import array_api_compat

from xpnn.errors import MixedBackendsError, ShapeError

Array = Any  # the array API standard has no type to import; every backend brings its own class

_namespaces: dict[type, Any] = {}  # array class -> namespace; a step asks this some hundred times
_floats: dict[Any, Any] = {}  # array class and floating dtype -> namespace

device = array_api_compat.device


def namespace(op: str, **arrays: Array | None) -> Any:
    """The array API namespace that all of `arrays` belong to; None entries are passed over.

    Raises `MixedBackendsError` where they belong to more than one.
    """
    xp = first = None
    for name, array in arrays.items():
        if array is None:
            continue
        found = _namespaces.get(type(array)) or _found(op, name, array)
        if xp is None:
            xp, first = found, name
        elif found is not xp:
            raise MixedBackendsError(
                f"{op}: {first} is an array of {_short(xp)}, but {name} is one of {_short(found)}; "
                "nothing is moved silently: bring both to one backend with backend.asarray(...)"
            )
    return xp


def floats(op: str, **arrays: Array | None) -> Any:
    """`namespace`, and a check that all arrays share one real floating dtype."""
    kind = None
    for array in arrays.values():
        if array is not None:
            its = type(array), getattr(array, "dtype", None)
            if kind is None:
                kind = its
            elif its != kind:
                break
    else:
        if kind in _floats:  # what is right has been so before, nearly always
            return _floats[kind]
    xp = namespace(op, **arrays)
    dtype = first = None
    for name, array in arrays.items():
        if array is None:
            continue
        if dtype is None:
            dtype, first = array.dtype, name
            if not _is_float(xp, dtype):
                raise ShapeError(
                    f"{op}: {name} has dtype {dtype}; layers compute in floating point: "
                    "convert and scale it first, e.g. images.astype('float32') / 255"
                )
        elif array.dtype != dtype:
            raise ShapeError(f"{op}: {first} has dtype {dtype}, but {name} has {array.dtype}; cast one to the other")
    _floats[kind] = xp
    return xp


def shape_of(array: Array | None) -> tuple[int, ...] | None:
    """That of an array, None for None."""
    return None if array is None else tuple(array.shape)


def channels(op: str, x: tuple[int, ...], expected: int, what: str) -> None:
    """Check the last axis of the shape of `x` against what the weights were made for."""
    if x[-1] != expected:
        raise ShapeError(
            f"{op}: x has {x[-1]} channels (shape {tuple(x)}, channels last), but {what} "
            f"{'are' if what.endswith('s') else 'is'} made for {expected}"
        )


def vectors(op: str, size: int, **shapes: tuple[int, ...] | None) -> None:
    """Check that arrays of these shapes hold one value for each of `size` channels: others may broadcast in silence."""
    for name, its in shapes.items():
        if its is not None and its != (size,):
            raise ShapeError(f"{op}: {name} has shape {its}; expected ({size},), one value a channel")


def _found(op: str, name: str, array: Any) -> Any:
    try:
        found = _namespaces[type(array)] = array_api_compat.array_namespace(array)
    except TypeError:
        raise ShapeError(f"{op}: {name} is a {type(array).__name__}, not an array") from None
    return found


@cache
def is_integral(xp: Any, dtype: Any) -> bool:
    """Whether this is a dtype of integers."""
    return bool(xp.isdtype(dtype, "integral"))


@cache
def _is_float(xp: Any, dtype: Any) -> bool:
    return bool(xp.isdtype(dtype, "real floating"))


@cache
def itemsize(xp: Any, dtype: Any) -> int:
    """Bytes of one element of a floating dtype."""
    return int(xp.finfo(dtype).bits) // 8


def _short(xp: Any) -> str:
    return str(xp.__name__).removeprefix("array_api_compat.")
