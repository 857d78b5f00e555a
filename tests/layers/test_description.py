import json
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import pytest

from xpnn import layers
from xpnn.errors import FileFormatError, ShapeError
from xpnn.layers import (
    ELU,
    GELU,
    REGISTRY,
    AvgPool2D,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    Layer,
    MaxPool2D,
    Parallel,
    ReLU,
    Reshape,
    Residual,
    Sequential,
)
from xpnn.layers.description import DEEPEST, build, describe

# One layer of each name, no option at its default.
LAYERS: dict[str, Layer] = {
    **{
        f"Conv{n}D": cls(6, (3,) * n, stride=2, padding=((1, 2),) * n, dilation=2, groups=3, bias=False,
                         initializer="lecun_normal")
        for n, cls in ((1, layers.Conv1D), (2, layers.Conv2D), (3, layers.Conv3D))
    },
    **{
        f"ConvTranspose{n}D": cls(6, 3, stride=2, padding="same", output_padding=1, dilation=1, groups=2, bias=False,
                                  initializer="zeros")
        for n, cls in ((1, layers.ConvTranspose1D), (2, layers.ConvTranspose2D), (3, layers.ConvTranspose3D))
    },
    **{
        f"MaxPool{n}D": cls((2,) * n, stride=1, padding=1, dilation=2, ceil_mode=True)
        for n, cls in ((1, layers.MaxPool1D), (2, layers.MaxPool2D), (3, layers.MaxPool3D))
    },
    **{
        f"AvgPool{n}D": cls(3, stride=1, padding=(1,) * n, ceil_mode=True, count_include_pad=False)
        for n, cls in ((1, layers.AvgPool1D), (2, layers.AvgPool2D), (3, layers.AvgPool3D))
    },
    "GlobalAvgPool": layers.GlobalAvgPool(), "GlobalMaxPool": layers.GlobalMaxPool(),
    "Dense": Dense(10, bias=False, initializer="article"), "Flatten": Flatten(), "Reshape": Reshape((2, -1, 3)),
    "BatchNorm": BatchNorm(momentum=0.2, epsilon=1e-3), "LayerNorm": layers.LayerNorm(1e-4),
    "Normalize": layers.Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 1)),
    "GroupNorm": layers.GroupNorm(4, epsilon=1e-4), "Dropout": Dropout(0.1),
    "ReLU": ReLU(), "LeakyReLU": layers.LeakyReLU(0.3), "ELU": ELU(0.7), "GELU": GELU("tanh"), "SiLU": layers.SiLU(),
    "Sigmoid": layers.Sigmoid(), "Tanh": layers.Tanh(), "Softmax": layers.Softmax(),
    "LogSoftmax": layers.LogSoftmax(),
    "Sequential": Sequential([Dense(3), Sequential([]), ReLU()]),
    "Residual": Residual(Sequential([Dense(3)]), shortcut=Dense(3)),
    "Parallel": Parallel(Conv2D(2, 1), Sequential([ReLU(), Conv2D(3, 1)])),
}  # fmt: skip


@dataclass(frozen=True, repr=False)
class Scale(Layer):
    factor: float = 2.0
    shifts: tuple[float, ...] = ()
    inner: Layer | None = None


def through_json(layer, custom_layers=()):
    return build(json.loads(json.dumps(describe(layer))), custom_layers)


# There and back


@pytest.mark.parametrize("name", REGISTRY)
def test_every_registered_layer_comes_back(name):
    layer = LAYERS[name]
    again = through_json(layer)
    assert type(again) is REGISTRY[name]
    assert again == layer
    assert repr(again) == repr(layer)
    assert hash(again) == hash(layer)  # tuples, not lists


@pytest.mark.parametrize("name", REGISTRY)
def test_every_option_is_in_the_description(name):
    layer = LAYERS[name]
    made = {f.name for f in fields(layer) if f.init}
    assert set(describe(layer)["options"]) == made - ({"dilation"} if "Transpose" in name or "Avg" in name else set())


def test_a_description_leaves_defaults_out():
    model = Sequential([Conv2D(8, 3), Flatten(), Dense(10, bias=True), Residual(ReLU())])
    assert describe(model) == {
        "layer": "Sequential",
        "options": {
            "layers": [
                {"layer": "Conv2D", "options": {"channels": 8, "kernel": 3}},
                {"layer": "Flatten", "options": {}},
                {"layer": "Dense", "options": {"units": 10}},
                {"layer": "Residual", "options": {"body": {"layer": "ReLU", "options": {}}}},
            ]
        },
    }


def test_branches_are_described_as_a_list():
    assert describe(Parallel(ReLU(), ELU())) == {
        "layer": "Parallel",
        "options": {"branches": [{"layer": "ReLU", "options": {}}, {"layer": "ELU", "options": {}}]},
    }


def test_options_may_be_left_out_where_there_are_none():
    assert build({"layer": "ReLU"}) == ReLU()


def test_numpy_numbers_become_plain_ones():
    description = describe(Sequential([Dropout(np.float32(0.5)), ELU(np.float64(0.1)), Dense(3, bias=np.bool_(False))]))
    assert json.loads(json.dumps(description)) == description
    assert build(description) == Sequential([Dropout(0.5), ELU(0.1), Dense(3, bias=False)])


def test_what_a_constructor_takes_comes_back():
    model = Sequential([Dense(3, bias=0), Dropout(0), ELU(1), AvgPool2D(2, ceil_mode=1)])
    assert through_json(model) == model


# Layers of one's own


def test_a_custom_layer_comes_back_from_its_class():
    model = Sequential([Scale(), Scale(0.5, (1.0, 2.0), inner=Scale(3.0, inner=ReLU()))])
    assert through_json(model, [Scale]) == model
    assert through_json(model, {Scale}) == model
    assert through_json(model, Scale) == model


def test_an_unknown_layer_is_named_with_the_remedy():
    with pytest.raises(
        FileFormatError, match=r"at model\.layers\[1\]: xpnn knows no layer 'Scale'.*custom_layers=\[Scale\]"
    ):
        through_json(Sequential([ReLU(), Scale()]))


@pytest.mark.parametrize("name", ["Conv", "Layer", "object", "os.system", "__import__", "", "dense"])
def test_only_registered_names_are_built(name):
    with pytest.raises(FileFormatError, match="knows no layer"):
        build({"layer": name, "options": {}})


def test_two_layers_of_one_name_are_refused():
    other = dataclass(frozen=True, repr=False)(type("Scale", (Layer,), {}))
    mine = dataclass(frozen=True, repr=False)(type("Dense", (Layer,), {}))
    with pytest.raises(ValueError, match="two layers Scale; rename one"):
        build({"layer": "ReLU"}, [Scale, other])
    with pytest.raises(ValueError, match="two layers Dense; rename one"):
        build({"layer": "ReLU"}, [mine])
    with pytest.raises(ValueError, match="your layer Dense has the name of a layer of xpnn"):
        describe(Sequential([mine()]))


@pytest.mark.parametrize("wrong", [Scale(), "Scale", int, None])
def test_custom_layers_takes_classes(wrong):
    with pytest.raises(TypeError, match=r"takes classes of layers, e\.g\. custom_layers=\[MyLayer\]"):
        build({"layer": "ReLU"}, [wrong])


def test_an_option_that_json_cannot_hold_is_named():
    for wrong in (print, {"a": 1}, np.zeros(2), 1j, b"", {1}):
        with pytest.raises(TypeError, match=r"Scale: factor=.*cannot be described in a file"):
            describe(Scale(wrong))


def test_a_default_need_not_be_described():
    @dataclass(frozen=True, repr=False)
    class Mapped(Layer):
        function: Any = np.tanh
        sizes: tuple[int, ...] = field(default_factory=lambda: (1, 2))

    assert describe(Mapped()) == {"layer": "Mapped", "options": {}}
    assert describe(Mapped(sizes=(1, 3))) == {"layer": "Mapped", "options": {"sizes": [1, 3]}}
    with pytest.raises(TypeError, match="Mapped: function="):
        describe(Mapped(np.sin))


def test_what_would_be_lost_is_named():
    class Loose(Layer):
        def __init__(self, size):
            object.__setattr__(self, "size", size)

    with pytest.raises(TypeError, match="Loose keeps size, which is no field of a dataclass"):
        describe(Loose(3))


def test_a_cached_property_is_no_option():
    @dataclass(frozen=True, repr=False)
    class Remembers(Layer):
        size: int

        @cached_property
        def double(self) -> int:
            return 2 * self.size

    layer = Remembers(3)
    assert layer.double == 6
    assert describe(layer) == {"layer": "Remembers", "options": {"size": 3}}


def test_a_custom_layer_that_refuses_is_an_error_of_the_file():
    @dataclass(frozen=True, repr=False)
    class Fussy(Layer):
        size: int = 1

        def __post_init__(self) -> None:
            raise ZeroDivisionError("no")

    with pytest.raises(FileFormatError, match="Fussy cannot be made of these options: no"):
        build({"layer": "Fussy"}, [Fussy])


# Descriptions that are wrong


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (None, r"at model: expected a layer.*came None"),
        ([], r"expected a layer"),
        ("Dense", r"expected a layer"),
        ({}, r"expected a layer"),
        ({"layer": 3}, r"expected a layer"),
        ({"layer": ["Dense"]}, r"expected a layer"),
        ({"layer": "ReLU", "options": []}, r"expected the options of ReLU by their names"),
        ({"layer": "ReLU", "options": {}, "code": "1"}, r"came also code"),
        ({"layer": "ReLU", "options": {"slope": 1}}, r"ReLU has no option slope; its options: none"),
        ({"layer": "ELU", "options": {"slope": 1}}, r"ELU has no option slope; its options: alpha"),
        ({"layer": "ELU", "options": {"op": "tanh"}}, r"ELU has no option op"),
        ({"layer": "Flatten", "options": {"target": [3]}}, r"Flatten has no option target"),
        ({"layer": "Dense"}, r"Dense lacks the option units"),
        ({"layer": "Conv2D", "options": {}}, r"Conv2D lacks the option channels, kernel"),
        ({"layer": "Parallel"}, r"Parallel lacks the option branches"),
        ({"layer": "Dense", "options": {"units": "ten"}}, r"Dense: units='ten'; expected int"),
        ({"layer": "Dense", "options": {"units": 2.5}}, r"Dense: units=2.5; expected int"),
        ({"layer": "Dense", "options": {"units": True}}, r"Dense: units=True; expected int"),
        ({"layer": "Dense", "options": {"units": None}}, r"Dense: units=None; expected int"),
        ({"layer": "Dense", "options": {"units": {}}}, r"at model\.units: expected a layer"),
        ({"layer": "Dense", "options": {"units": 0}}, r"Dense cannot be made of these options.*positive integer"),
        ({"layer": "Dense", "options": {"units": 3, "bias": "no"}}, r"Dense: bias='no'; expected bool"),
        ({"layer": "Dense", "options": {"units": 3, "initializer": "magic"}}, r"cannot be made.*he_uniform"),
        ({"layer": "BatchNorm", "options": {"epsilon": "x"}}, r"BatchNorm: epsilon='x'; expected float"),
        ({"layer": "Dropout", "options": {"rate": 1.5}}, r"Dropout cannot be made of these options"),
        ({"layer": "MaxPool2D", "options": {"window": [2, "2"]}}, r"MaxPool2D: window=\(2, '2'\); expected"),
        ({"layer": "Conv2D", "options": {"channels": 1, "kernel": 1, "padding": [[1, 2, 3]]}}, r"Conv2D: padding="),
        ({"layer": "Reshape", "options": {"target": [2.0]}}, r"Reshape: target=\(2\.0,\); expected"),
        ({"layer": "Sequential", "options": {"layers": [3]}}, r"Sequential: layers=\(3,\); expected"),
        ({"layer": "Sequential", "options": {"layers": {"layer": "ReLU"}}}, r"Sequential: layers=.*expected"),
        ({"layer": "Sequential", "options": {"layers": [[{"layer": "ReLU"}]]}}, r"Sequential: layers="),
        ({"layer": "Residual", "options": {"body": None}}, r"Residual: body=None; expected Layer"),
        ({"layer": "Residual", "options": {"body": {"layer": "No"}}}, r"at model\.body: xpnn knows no layer 'No'"),
        ({"layer": "Parallel", "options": {"branches": []}}, r"Parallel cannot be made of these options"),
        ({"layer": "Parallel", "options": {"branches": 3}}, r"Parallel: branches=3; expected"),
        ({"layer": "Dense", "options": {"units": 1j}}, r"at model\.units: came a complex"),
    ],
)  # fmt: skip
def test_a_wrong_description_is_an_error_in_words(description, message):
    with pytest.raises(FileFormatError, match=message):
        build(description)


def nested(depth: int) -> Layer:
    layer: Layer = ReLU()
    for _ in range(depth - 1):
        layer = Residual(layer)
    return layer


def test_nesting_has_an_end():
    assert through_json(nested(DEEPEST)) == nested(DEEPEST)
    with pytest.raises(ValueError, match="more than 64 deep"):
        describe(nested(DEEPEST + 1))
    with pytest.raises(FileFormatError, match="nested more than 64 deep"):
        build({"layer": "Residual", "options": {"body": describe(nested(DEEPEST))}})


@pytest.mark.parametrize("depth", [100, 5_000])
def test_deep_lists_are_an_error_not_a_crash(depth):
    deep: Any = 1
    for _ in range(depth):
        deep = [deep]
    for description in (deep, {"layer": deep}, {"layer": "Reshape", "options": {"target": deep}}):
        with pytest.raises(FileFormatError, match=r"expected a layer|nested more than 64 deep"):
            build(description)


def test_a_shape_error_stays_its_own_outside_of_files():
    with pytest.raises(ShapeError):
        MaxPool2D(0)
