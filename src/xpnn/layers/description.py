"""A model as JSON and back.

    describe(Sequential([Conv2D(8, 3), ReLU()]))
    {"layer": "Sequential", "options": {"layers": [
        {"layer": "Conv2D", "options": {"channels": 8, "kernel": 3}}, {"layer": "ReLU", "options": {}}]}}

Names and numbers travel, never code: `build` makes only layers whose classes it was given, those of
`xpnn.layers.REGISTRY` and `custom_layers`, and evaluates and unpickles nothing.
"""

from __future__ import annotations

import reprlib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cached_property
from inspect import Parameter, signature
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from xpnn import layers  # its REGISTRY is looked up when it is needed: the package may still be loading
from xpnn.errors import FileFormatError
from xpnn.layers.base import Layer

DEEPEST = 64
"""How deep layers may be nested."""


def describe(layer: Layer) -> dict[str, Any]:
    """The description of a layer in values that JSON knows: its name, and the options that are not the default.

    Args:
        layer: any layer, made of others or not, registered or a frozen dataclass of your own whose options
            are numbers, strings, booleans, None, layers, or tuples of these.
    """
    return _described(layer, 1)


def build(description: Any, custom_layers: Sequence[type[Layer]] = ()) -> Layer:
    """The layer that `describe` described: `build(describe(layer)) == layer`.

    Args:
        description: what `describe` gave.
        custom_layers: the classes of layers that are not xpnn's own.

    Raises:
        FileFormatError: a layer is unknown, an option is wrong, or this is no description.
    """
    return _built(description, _classes(custom_layers), "model", 1)


def _described(layer: Layer, depth: int) -> dict[str, Any]:
    cls = type(layer)
    name = cls.__name__
    if layers.REGISTRY.get(name, cls) is not cls:
        raise ValueError(
            f"your layer {name} has the name of a layer of xpnn, and a file could not tell them apart; rename it"
        )
    if depth > DEEPEST:
        raise ValueError(f"layers are nested more than {DEEPEST} deep, which files do not hold; nest them less")
    options = _options(cls)
    kept = {f.name for f in fields(layer)} | {
        n for n in vars(layer) if isinstance(getattr(cls, n, None), cached_property)
    }
    if lost := sorted(vars(layer).keys() - kept):
        raise TypeError(
            f"{name} keeps {', '.join(lost)}, which is no field of a dataclass and would be lost; "
            f"write the layer as a dataclass: @dataclass(frozen=True, repr=False) class {name}(Layer)"
        )
    described = {}
    for n, option in options.items():
        value = getattr(layer, n)
        default = option.default if option.default_factory is MISSING else option.default_factory()
        if value is not default:
            plain = _plain(value, f"{name}: {n}", depth)
            if default is MISSING or value != default:
                described[n] = plain
    return {"layer": name, "options": described}


def _plain(value: Any, what: str, depth: int) -> Any:
    """An option in values that JSON knows."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Layer):
        return _described(value, depth + 1)
    if isinstance(value, tuple | list):
        if depth > DEEPEST:
            raise ValueError(f"{what} is nested more than {DEEPEST} deep, which files do not hold; nest it less")
        return [_plain(v, what, depth + isinstance(v, tuple | list)) for v in value]
    raise TypeError(
        f"{what}={value!r} cannot be described in a file; "
        "options are numbers, strings, booleans, None, layers, and tuples of these"
    )


def _built(description: Any, classes: Mapping[str, type[Layer]], where: str, depth: int) -> Layer:
    if not isinstance(description, dict) or not isinstance(description.get("layer"), str):
        raise _error(where, f'expected a layer, {{"layer": name, "options": {{…}}}}; came {_brief(description)}')
    name, given = description["layer"], description.get("options", {})
    if not isinstance(given, dict) or not all(isinstance(n, str) for n in given):
        raise _error(where, f"expected the options of {name} by their names; came {_brief(given)}")
    if more := sorted(map(str, description.keys() - {"layer", "options"})):
        raise _error(where, f'a layer has the entries "layer" and "options"; came also {", ".join(more)}')
    if depth > DEEPEST:
        raise _error(where, f"layers are nested more than {DEEPEST} deep")
    if name not in classes:
        raise _error(
            where,
            f"xpnn knows no layer {name!r}; if it is one of your own, hand in its class: custom_layers=[{name}], "
            "otherwise a newer xpnn may know it",
        )
    cls = classes[name]
    options = _options(cls)
    if unknown := sorted(given.keys() - options.keys()):
        known = ", ".join(options) or "none"
        raise _error(where, f"{name} has no option {', '.join(unknown)}; its options: {known}")
    if missing := [n for n, f in options.items() if f.default is f.default_factory is MISSING and n not in given]:
        raise _error(where, f"{name} lacks the option {', '.join(missing)}")
    values = {n: _value(v, classes, f"{where}.{n}", depth) for n, v in given.items()}
    if layers.REGISTRY.get(name) is cls:  # a custom layer's annotations may be anything: it checks for itself
        hints = get_type_hints(cls)
        for n, value in values.items():
            if not _fits(value, hints[n]):
                raise _error(where, f"{name}: {n}={_brief(value)}; expected {options[n].type}")
    star = [p.name for p in signature(cls).parameters.values() if p.kind is Parameter.VAR_POSITIONAL]
    try:
        several = [v for n in star for v in values.pop(n, ())]
        return cls(*several, **values)
    except Exception as e:
        raise _error(where, f"{name} cannot be made of these options: {e}") from e


def _value(value: Any, classes: Mapping[str, type[Layer]], where: str, depth: int) -> Any:
    """An option from its description."""
    if isinstance(value, dict):
        return _built(value, classes, where, depth + 1)
    if isinstance(value, list | tuple):
        if depth > DEEPEST:
            raise _error(where, f"lists are nested more than {DEEPEST} deep")
        return tuple(
            _value(v, classes, f"{where}[{i}]", depth + isinstance(v, list | tuple)) for i, v in enumerate(value)
        )
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise _error(where, f"came a {type(value).__name__}, which is no value of JSON")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type, for the annotations of xpnn's own layers."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, h) for h in args)
    if origin is tuple and args[-1] is not ...:
        return isinstance(value, tuple) and len(value) == len(args) and all(map(_fits, value, args))
    if origin in (tuple, Sequence):
        return isinstance(value, tuple) and all(_fits(v, args[0]) for v in value)
    if hint in (bool, float):  # Dense(10, bias=0) and Dropout(0) are as good
        return isinstance(value, bool | int if hint is bool else int | float)
    if isinstance(value, bool):
        return False
    return isinstance(value, hint)


def _options(cls: type[Layer]) -> dict[str, Field[Any]]:
    """The options of a layer by their names."""
    return {f.name: f for f in fields(cls) if f.init}


def _classes(custom_layers: Sequence[type[Layer]]) -> dict[str, type[Layer]]:
    """All layers that may be built, by their names."""
    classes = dict(layers.REGISTRY)
    for cls in (custom_layers,) if isinstance(custom_layers, type) else custom_layers:
        if not (isinstance(cls, type) and issubclass(cls, Layer) and is_dataclass(cls)):
            raise TypeError(f"custom_layers takes classes of layers, e.g. custom_layers=[MyLayer]; came {cls!r}")
        if classes.setdefault(cls.__name__, cls) is not cls:
            raise ValueError(f"custom_layers: there are two layers {cls.__name__}; rename one")
    return classes


def _error(where: str, message: str) -> FileFormatError:
    return FileFormatError(f"in the description of the model, at {where}: {message}")


def _brief(value: Any) -> str:
    return reprlib.repr(value)  # never deep, never long
