"""The page of `xpnn explain`: its data, and in a browser the sums that its script makes of them."""

import base64
import json
import re
from dataclasses import dataclass

import numpy as np
import pytest
from browser import seen

from xpnn import Trainer
from xpnn.layers import (
    ELU,
    GELU,
    AvgPool2D,
    BatchNorm,
    Container,
    Conv1D,
    Conv2D,
    Conv3D,
    ConvTranspose2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    GlobalMaxPool,
    GroupNorm,
    Layer,
    LayerNorm,
    LeakyReLU,
    LogSoftmax,
    MaxPool1D,
    MaxPool2D,
    MaxPool3D,
    Normalize,
    Parallel,
    ReLU,
    Reshape,
    Residual,
    Sequential,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)
from xpnn.pictures.explain import FLOATS, embedded, explain, trace

Image = pytest.importorskip("PIL.Image")

RNG = np.random.default_rng(0)
PICTURES = Sequential([
    Normalize((0.4, 0.3), 0.5),
    Conv2D(6, (3, 2), stride=(2, 1), padding=((1, 2), (0, 1)), dilation=(1, 2)), LeakyReLU(),
    Conv2D(6, 3, padding="same", groups=3, bias=False), BatchNorm(), ELU(),
    ConvTranspose2D(4, 3, stride=2, padding=1, output_padding=1, groups=2), GroupNorm(2), SiLU(),
    MaxPool2D(3, stride=2, padding=1), Residual(Sequential([Conv2D(4, 3, padding=1), Tanh()])),
    Residual(Conv2D(6, 1), Conv2D(6, 3, padding=1)), LayerNorm(), GELU(),
    Parallel(
        AvgPool2D(3, stride=1, padding=1), AvgPool2D(3, stride=1, padding=1, count_include_pad=False),
        MaxPool2D(2, stride=1, padding=((0, 1), (0, 1))),
    ),
    AvgPool2D(2, ceil_mode=True), GELU(approximate="tanh"), Dropout(0.5),
    Parallel(Flatten(), GlobalAvgPool(), GlobalMaxPool()), Dense(8), Reshape((2, 4)), Dense(3), Sigmoid(), Flatten(),
    LayerNorm(), ReLU(), Dense(5), LogSoftmax(), Dense(3, bias=False),
])  # fmt: skip
SEQUENCES = Sequential([Conv1D(3, 3, padding="same"), MaxPool1D(2), Flatten(), Dense(2), Softmax()])
VOLUMES = Sequential([Conv3D(2, (2, 2, 3), padding=((1, 0), (0, 0), (1, 1))), MaxPool3D(2), GlobalAvgPool()])


def trained(model, in_shape):
    """A trainer whose weights and statistics are all something."""
    trainer = Trainer(model, loss="mse", backend="numpy").build(in_shape)
    state = trainer.host_state()
    for part in ("weights", "stats"):
        for path, a in state[part].items():
            a += RNG.uniform(0.1, 0.6, a.shape) * (1 if "var" in path else RNG.choice([-1, 1], a.shape))
    trainer.restore(in_shape, state)
    return trainer, RNG.random(in_shape, np.float32)


def page(model, in_shape, classes=("a", "b", "c")):
    trainer, image = trained(model, in_shape)
    return explain(trainer, image, classes, "picture.png"), trace(trainer, image)


def parts(text):
    """What a page embeds: the description, and the numbers."""
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    numbers = re.search(r'id="numbers">(.*?)</script>', text, re.S)[1]
    return data, np.frombuffer(base64.b64decode(numbers), "<f4")


# The data


def test_each_map_is_embedded_as_the_network_computed_it():
    trainer, image = trained(PICTURES, (9, 8, 2))
    data, numbers = parts(explain(trainer, image, ("a", "b", "c"), "picture.png"))
    output = trainer.predict(image[None])[0]
    *_, last, softmax = data["nodes"]
    np.testing.assert_allclose(numbers[last["at"] :][:3], output, rtol=1e-5)
    np.testing.assert_allclose(numbers[softmax["at"] :][:3], np.exp(output) / np.exp(output).sum(), rtol=1e-5)
    np.testing.assert_array_equal(numbers[: image.size], image.ravel())
    for node, traced in zip(data["nodes"], trace(trainer, image), strict=False):
        size = traced.y.size
        np.testing.assert_array_equal(numbers[node["at"] :][:size], traced.y.ravel())
        assert node["shape"] == list(traced.y.shape)
        for name, at in node["arrays"].items():
            np.testing.assert_array_equal(numbers[at:][: traced.arrays[name].size], traced.arrays[name].ravel())


def test_the_page_needs_nothing_else():
    text, _ = page(PICTURES, (9, 8, 2))
    assert not re.search(r'https?://|src="|<link|@import|url\(', text)


def test_names_cannot_break_the_page():
    trainer, image = trained(SEQUENCES, (8, 1))
    text = explain(trainer, image, ("</script><b>", "b"), "<i>.png")
    assert "<i>" not in text
    assert "</script><b>" not in text
    assert parts(text)[0]["classes"][0] == "</script><b>"


def test_residual_and_parallel_are_nodes_that_say_what_they_are_made_of():
    trainer, image = trained(Sequential([Residual(Conv2D(2, 1)), Parallel(ReLU(), Tanh())]), (3, 3, 2))
    nodes = trace(trainer, image)
    assert [(n.path, n.kind, n.inputs) for n in nodes] == [
        ("", "input", []), ("0.body", "conv", [0]), ("0", "sum", [1, 0]),
        ("1.0", "function", [2]), ("1.1", "function", [2]), ("1", "concat", [3, 4]),
    ]  # fmt: skip
    np.testing.assert_array_equal(nodes[-1].y, trainer.predict(image[None])[0])


class Doubled(Conv2D):
    def apply(self, weights, stats, x, run):
        y, stats, backward = super().apply(weights, stats, x, run)
        return 2 * y, stats, backward


@dataclass(frozen=True, repr=False)
class Twice(Container):
    inner: Layer

    def parts(self):
        return [("inner", self.inner)]

    def shape(self, in_shape):
        return self.inner.shape(in_shape)

    def apply(self, weights, stats, x, run):
        (apply,) = self._appliers(weights, stats, run)
        return apply(x)[0] * 2, {}, None


def test_a_layer_of_ones_own_is_shown_without_its_sum():
    trainer, image = trained(Sequential([Doubled(2, 1), ReLU()]), (3, 3, 1))
    assert [(n.name, n.kind) for n in trace(trainer, image)] == [
        ("Input", "input"), ("Doubled", ""), ("ReLU", "function"),
    ]  # fmt: skip


def test_in_a_container_of_ones_own_what_feeds_a_layer_is_not_known():
    trainer, image = trained(Sequential([Twice(Conv2D(2, 1)), ReLU(), Tanh()]), (3, 3, 1))
    assert [(n.path, n.kind, n.inputs) for n in trace(trainer, image)[1:]] == [
        ("0.inner", "", []), ("1", "", []), ("2", "function", [2]),
    ]  # fmt: skip


def test_a_bare_layer_is_a_network():
    trainer, image = trained(Dense(3), (4,))
    assert [(n.path, n.kind) for n in trace(trainer, image)] == [("", "input"), ("", "dense")]


@pytest.mark.parametrize("floats", [200, 1000, 4000, FLOATS])
def test_a_page_stays_within_its_numbers(floats):
    trainer, image = trained(PICTURES, (9, 8, 2))
    nodes = trace(trainer, image)
    described, numbers = embedded(nodes, floats)
    assert numbers.size <= floats
    whole = [d["whole"] and d["shown"] == d["shape"][-1] for d in described]
    assert all(whole) == (floats == FLOATS)
    for d in described:
        if d["arrays"] and d["kind"] in ("conv", "dense"):  # a sum needs all of its input
            assert all(described[i]["shown"] == described[i]["shape"][-1] for i in d["inputs"])


# The sums, in a browser

ALL = """
const found = [];
nodes.forEach((node, id) => {
  const step = Math.ceil(node.channels * node.places / 47);
  for (let c = 0; c < node.channels; c++) for (let p = c % Math.min(step, node.places); p < node.places; p += step) {
    choose(id, c, p);
    const r = document.getElementById("result").dataset;
    found.push([id, c, p, Number(r.sum), Number(r.value)]);
  }
});
return found;
"""


@pytest.mark.parametrize(
    ("model", "in_shape"), [(PICTURES, (9, 8, 2)), (SEQUENCES, (8, 2)), (VOLUMES, (3, 4, 5, 2))], ids=["2D", "1D", "3D"]
)
def test_every_sum_of_the_page_is_what_the_network_computed(tmp_path, model, in_shape):
    text, nodes = page(model, in_shape)
    found = seen(text, ALL, tmp_path)
    assert "error" not in found, found
    assert {row[0] for row in found} >= set(range(len(nodes)))
    for i, channel, place, made, computed in found:
        if i < len(nodes):
            y = nodes[i].y.reshape(-1, nodes[i].y.shape[-1])
            assert computed == pytest.approx(y[place, channel], rel=1e-6)
            assert made == pytest.approx(computed, rel=1e-4, abs=2e-5), (nodes[i], channel, place)


CLICK = """
const found = {}, jump = document.getElementById("jump");  // draws at once, as no observer does
const wait = () => new Promise(done => setTimeout(done, 100));
for (const [id, channel, column, row] of [[1, 2, 3, 4], [3, 1, 2, 0], [5, 0, 7, 0]]) {
  jump.value = id; jump.onchange();
  const canvas = document.querySelector(`section[data-node="${id}"] canvas[data-channel="${channel}"]`);
  const box = canvas.getBoundingClientRect();
  const node = nodes[id];
  const x = box.left + (column + 0.5) / node.width * box.width, y = box.top + (row + 0.5) / node.rows * box.height;
  canvas.dispatchEvent(new MouseEvent("click", {clientX: x, clientY: y, bubbles: true}));
  found[id] = {...document.getElementById("result").dataset, chosen: {...chosen}, text: panel.textContent};
}
const keys = {};
for (const key of ["ArrowRight", "PageDown"]) {
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
  keys[key] = {...chosen};
}
choose(1, 2, 0);
panel.querySelector("table.window button").click();
const led = {...chosen};
location.hash = "#3,2,5"; await wait();
return {found, keys, led, led_by_address: {...chosen}, heading: document.querySelector("h1").textContent};
"""


def test_clicks_and_keys_choose_the_pixel_they_point_at(tmp_path):
    model = Sequential([Conv2D(4, 3), ReLU(), MaxPool2D(2), Flatten(), Dense(12), Dense(3)])
    text, nodes = page(model, (12, 12, 1))
    shown = seen(text, CLICK, tmp_path)
    assert "error" not in shown, shown
    conv, pool, dense = (shown["found"][i] for i in "135")
    assert conv["chosen"] == {"node": 1, "channel": 2, "place": 4 * 10 + 3}
    assert float(conv["sum"]) == pytest.approx(nodes[1].y[4, 3, 2], rel=1e-5)
    assert "channel 2, row 4, column 3" in conv["text"]
    assert pool["chosen"] == {"node": 3, "channel": 1, "place": 2}
    assert float(pool["sum"]) == nodes[3].y[0, 2, 1]
    assert dense["chosen"] == {"node": 5, "channel": 7, "place": 0}
    assert float(dense["sum"]) == pytest.approx(nodes[5].y[7], rel=1e-5)
    assert shown["keys"]["ArrowRight"] == {"node": 5, "channel": 8, "place": 0}
    assert shown["keys"]["PageDown"] == {"node": 5, "channel": 9, "place": 0}
    assert shown["led"] == {"node": 0, "channel": 0, "place": 0}
    assert shown["led_by_address"] == {"node": 3, "channel": 2, "place": 5}
    assert shown["heading"] == f"picture.png: the network says “{'abc'[nodes[-1].y.argmax()]}”"


OUTLINE = """
choose(1, 2, 4 * 10 + 3);  // its window begins at row 4, column 3
const canvas = panel.querySelectorAll("#zooms canvas")[1], scale = canvas.width / 12;
const pixels = canvas.getContext("2d");
const at = (row, column) => [...pixels.getImageData(column * scale, row * scale, 1, 1).data].slice(0, 3);
const sides = [[5.5, 3], [5.5, 6], [4, 4.5], [7, 4.5]], inside = [[5.5, 4], [5.5, 5], [5, 4.5], [6, 4.5], [5.5, 4.5]];
return [sides.map(p => at(...p)), inside.map(p => at(...p))];
"""


def test_a_window_is_outlined_and_what_is_in_it_is_seen(tmp_path):
    text, _ = page(Sequential([Conv2D(4, 3), Flatten(), Dense(3)]), (12, 12, 1))
    sides, inside = seen(text, OUTLINE, tmp_path)
    mark = [0xD9, 0x48, 0x0F]
    assert sides == [mark] * 4
    assert mark not in inside
    assert all(red == green == blue for red, green, blue in inside)  # as the picture is


def test_what_is_not_embedded_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("xpnn.pictures.explain.embedded", lambda nodes: embedded(nodes, 900))
    text, _ = page(Sequential([Conv2D(8, 3), Conv2D(8, 3), Flatten(), Dense(3)]), (12, 12, 1))
    said = seen(
        text,
        "return nodes.map((n, i) => { if (!n.shown) return ''; choose(i, 0, 0); return panel.textContent; })",
        tmp_path,
    )
    assert "error" not in said, said
    assert any("would be too large" in text for text in said)


def test_the_page_is_no_wider_than_a_phone(tmp_path):
    text = json.dumps(page(PICTURES, (9, 8, 2))[0]).replace("</", r"<\/")
    widths = seen(
        "<html><iframe id=f style='width:390px;height:800px;border:0'></iframe></html>",
        f"""const f = document.getElementById("f"); f.srcdoc = {text};
        await new Promise(done => f.onload = done);
        const d = f.contentDocument;
        d.querySelectorAll("section").forEach(f.contentWindow.fill);
        return [d.scrollingElement.scrollWidth, d.querySelectorAll("canvas").length];""",
        tmp_path,
    )
    assert widths[0] <= 390
    assert widths[1] > 50


def test_the_picture_itself_is_shown():
    trainer, image = trained(SEQUENCES, (8, 1))
    picture = Image.new("L", (900, 600), 200)
    data, _ = parts(explain(trainer, image, ("a", "b"), "p.png", picture, ["grey"]))
    assert data["picture"].startswith("data:image/jpeg;base64,")
    assert data["done"] == ["grey"]
