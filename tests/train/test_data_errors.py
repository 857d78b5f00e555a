"""Data that cannot be trained on: each is refused in words that say what came, what was expected and what to do."""

import array_api_strict
import numpy as np
import pytest
from training import CLASSES, IMAGES, LABELS, NET, PLAIN, SHAPE, assert_same_state, net, plain

from xpnn import MixedBackendsError, NonFiniteError, ShapeError, Trainer
from xpnn.data import digits
from xpnn.layers import (
    BatchNorm,
    Conv2D,
    Dense,
    Flatten,
    GlobalAvgPool,
    LogSoftmax,
    MaxPool2D,
    ReLU,
    Sequential,
    Sigmoid,
    Softmax,
)
from xpnn.losses import NLL, CrossEntropy

CALLS = {
    "fit": lambda t, x, y: t.fit(x, y),
    "evaluate": lambda t, x, y: t.evaluate(x, y),
    "fit a source": lambda t, x, y: t.fit([(x, y)]),
    "evaluate a source": lambda t, x, y: t.evaluate([(x, y)]),
    "validate": lambda t, x, y: t.fit(IMAGES, LABELS, validation_data=(x, y)),
}
"""Every way in for images with labels."""

EMPTY = IMAGES[:0]


@pytest.fixture(params=CALLS)
def call(request):
    return CALLS[request.param]


def bad(images=IMAGES, **values):
    images = images.copy()
    images.reshape(len(images), -1)[list(values.pop("rows")), 0] = values.pop("value")
    return images


def labels_with(*values):
    labels = LABELS.copy()
    labels[: len(values)] = values
    return labels


# Labels


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (labels_with(10), r"1 label\(s\) out of range, such as 10; the model has 3 outputs, so labels are 0 … 2: fix"),
        (labels_with(0, -1, -1), r"2 label\(s\) out of range, such as -1; .*or set ignored_label"),
        (LABELS.astype("float32"), r"labels have dtype float32; expected integers 0 … 2: labels\.astype\('int64'\)"),
        (LABELS > 0, r"labels have dtype bool; expected integers 0 … 2"),
        (np.eye(3)[LABELS], r"labels have shape \(20, 3\).*expected labels \(N\): one-hot.*labels\.argmax\(axis=1\)"),
        (LABELS[:, None], r"labels have shape \(20, 1\).*drop the axis of size 1: labels\[:, 0\]"),
        (np.int64(1), r"labels have shape \(\)"),
        (LABELS[:19], "20 images, but 19 labels; expected as many of both"),
        ([*LABELS, 0], "20 images, but 21 labels"),
        ([], "20 images, but 0 labels"),
    ],
)
def test_labels(call, labels, message):
    with pytest.raises(ShapeError, match=message):
        call(plain(), IMAGES, labels)


def test_ten_is_no_digit():
    model = Sequential([Flatten(), Dense(10)])
    with pytest.raises(ShapeError, match="such as 10; the model has 10 outputs, so labels are 0 … 9"):
        Trainer(model, backend="numpy").fit(IMAGES, labels_with(10))


def test_ignored_labels_may_lie_out_of_range():
    labels = labels_with(-1)
    Trainer(PLAIN, CrossEntropy(ignored_label=-1), backend="numpy").fit(IMAGES, labels)
    with pytest.raises(ShapeError, match="such as -2"):
        Trainer(PLAIN, CrossEntropy(ignored_label=-1), backend="numpy").fit(IMAGES, labels_with(-1, -2))


def test_scores_for_each_place_of_an_image():
    model = Sequential([Conv2D(3, 3), ReLU(), Dense(3)])
    with pytest.raises(ShapeError, match=r"makes scores \(N, 4, 4, 3\).*add Flatten\(\) before the last Dense"):
        Trainer(model, backend="numpy").fit(IMAGES, LABELS)
    Trainer(model, backend="numpy").fit(IMAGES, np.zeros((20, 4, 4), int))


@pytest.mark.parametrize(
    ("loss", "targets", "error", "message"),
    [
        ("mse", LABELS, ShapeError, r"mse: targets have shape \(20,\), the model makes \(N, 3\); expected the same"),
        ("mse", np.eye(3, dtype=int)[LABELS], ShapeError, r"targets have dtype int64.*targets\.astype\('float32'\)"),
        ("huber", np.full((20, 3), np.nan), NonFiniteError, "huber: 60 of 60 targets are NaN or infinite; clean"),
        ("binary_cross_entropy", np.full((20, 3), 1.5), ShapeError, r"lie in \[1\.5, 1\.5\]; expected probab"),
    ],
)
def test_targets_that_are_numbers(loss, targets, error, message):
    for use in (Trainer.fit, Trainer.evaluate):
        with pytest.raises(error, match=message):
            use(Trainer(PLAIN, loss, backend="numpy"), IMAGES, targets)


def test_targets_without_the_axis_of_size_one():
    with pytest.raises(ShapeError, match=r"makes \(N, 1\); expected the same; add an axis: targets\[:, None\]"):
        Trainer(Sequential([Flatten(), Dense(1)]), "mse", backend="numpy").fit(IMAGES, np.zeros(20))


# Images


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool"])
def test_integer_images(call, dtype):
    message = rf"images have dtype {dtype} and shape \(20, 6, 6, 1\).*images\.astype\('float32'\) / 255"
    with pytest.raises(ShapeError, match=message):
        call(plain(), IMAGES.astype(dtype), LABELS)
    with pytest.raises(ShapeError, match=message):
        plain().predict(IMAGES.astype(dtype))


def test_images_without_channels():
    with pytest.raises(ShapeError, match=r"layer 0 \(.*came \(6, 6\); add a channel axis: images\[\.\.\., None\]"):
        net().fit(IMAGES[..., 0], LABELS)


def test_images_whose_channels_come_first():
    for channels in (1, 3, 4):
        images = np.zeros((20, channels, 9, 9), "float32")
        message = rf"\(N, {channels}, 9, 9\) look as if channels came first; expected \(N, H, W, C\): np\.moveaxis"
        for use in (lambda t, x: t.fit(x, LABELS), lambda t, x: t.predict(x), lambda t, x: t.fit([(x, LABELS)])):
            with pytest.raises(ShapeError, match=message):
                use(plain(), images)
    plain().build((1, 9, 9)).fit(images[:, :1], LABELS)  # who says so is believed


def test_images_whose_channels_come_first_after_others():
    trainer = plain().build((9, 9, 3))
    with pytest.raises(ShapeError, match=r"\(3, 9, 9\), but .* was built for \(9, 9, 3\): np\.moveaxis\(images"):
        trainer.predict(np.zeros((2, 3, 9, 9), "float32"))


def test_a_single_image():
    trainer = plain().build(SHAPE)
    with pytest.raises(ShapeError, match=r"\(6, 1\), but .* was built for \(6, 6, 1\): a single .*: images\[None\]$"):
        trainer.predict(IMAGES[0])
    assert trainer.predict(IMAGES[0][None]).shape == (1, CLASSES)


@pytest.mark.parametrize("model", [NET, PLAIN, Sequential([Conv2D(2, 3), GlobalAvgPool(), Dense(3)])])
def test_other_samples_than_before(model):
    trainer = plain(model=model)
    trainer.fit(IMAGES, LABELS)
    before = trainer.host_state()
    for shape in ((6, 6, 3), (8, 8, 1), (36, 1)):
        images = np.zeros((20, *shape), "float32")
        for use in (
            lambda: trainer.predict(images),  # noqa: B023
            lambda: trainer.evaluate(images, LABELS),  # noqa: B023
            lambda: trainer.fit(images, LABELS),  # noqa: B023
            lambda: trainer.fit([(images, LABELS)]),  # noqa: B023
            lambda: trainer.evaluate([(images, LABELS)]),  # noqa: B023
        ):
            with pytest.raises(ShapeError, match=rf"shape \({shape[0]}, .*was built for \(6, 6, 1\): bring"):
                use()
    assert trainer.host_state().keys() == before.keys()
    assert trainer.step == 1


def test_a_kernel_larger_than_the_image():
    model = Sequential([Conv2D(2, 3), Conv2D(2, 5), Flatten(), Dense(3)])
    with pytest.raises(ShapeError, match=r"layer 1 \(Conv2D\(2, 5\)\).*\(5, 5\) is larger than its input of \(4, 4\)"):
        plain(model=model).fit(IMAGES, LABELS)
    with pytest.raises(ShapeError, match=r"layer 1 \(MaxPool2D\(5\)\).*use a smaller window"):
        plain(model=Sequential([Conv2D(2, 3), MaxPool2D(5)])).predict(IMAGES)


def test_data_that_are_refused_leave_nothing_behind():
    """The size of the samples is settled by the first data that are accepted."""
    trainer = plain()
    wrong = np.zeros((20, 5, 5, 1), "float32")
    with pytest.raises(ShapeError):
        trainer.fit(wrong, labels_with(99))
    with pytest.raises(NonFiniteError):
        trainer.fit(wrong + np.nan, LABELS)
    with pytest.raises(ShapeError):
        trainer.fit([(wrong, labels_with(99))])
    assert trainer.in_shape is None
    trainer.fit(IMAGES, LABELS)
    other = plain()
    other.fit(IMAGES, LABELS)
    assert_same_state(trainer, other)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (EMPTY, r"there are no images: their shape is \(0, 6, 6, 1\)"),
        (np.zeros(20, "float32"), r"images have shape \(20,\); expected \(N, H, W, C\)"),
        (np.float32(1), r"images have shape \(\); expected \(N, H, W, C\)"),
        ([[1.0, 2.0], [1.0]], "these lists make no array"),
        ({"x": 1}, r"a builtins\.dict, which is no array; make it one first, e\.g\. with np\.asarray"),
    ],
)
def test_what_are_no_images(call, images, message):
    with pytest.raises(ShapeError, match=message):
        call(plain(), images, LABELS[:0] if images is EMPTY else LABELS)


def test_images_without_labels():
    for use in (Trainer.fit, Trainer.evaluate):
        with pytest.raises(TypeError, match=r"images came without labels; give both, or a source of batches"):
            use(plain(), IMAGES)
    with pytest.raises(TypeError, match="images came without labels"):
        plain().fit(IMAGES, LABELS, validation_data=IMAGES)


# Values


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(call, value):
    trainer = plain()
    with pytest.raises(NonFiniteError, match=r"(images|batch 1): 2 of 720 values are NaN or infinite.*np\.nan_to_num"):
        call(trainer, bad(rows=(3, 7), value=value), LABELS)
    assert trainer.step == 0


@pytest.mark.eager
def test_values_that_are_not_finite_on_the_device(backend):
    with pytest.raises(NonFiniteError, match="images: 1 of 720 values"):
        plain(backend).fit(backend.asarray(bad(rows=(3,), value=np.nan)), LABELS)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_values_that_float32_cannot_hold():
    images = bad(IMAGES.astype("float64"), rows=(3,), value=1e300)
    with pytest.raises(NonFiniteError, match="1 of 720 values are NaN or infinite as float32"):
        plain().fit(images, LABELS)
    plain(dtype="float64").fit(images, LABELS)


def test_a_batch_of_a_source_that_is_not_finite():
    """Batches are looked at as they come: what went before is done."""
    source = [(IMAGES[:10], LABELS[:10]), (bad(rows=(12,), value=np.nan)[10:], LABELS[10:])]
    trainer, other = plain(), plain()
    with pytest.raises(NonFiniteError, match="batch 2: 1 of 360 values"):
        trainer.fit(source)
    other.fit(source[:1])
    other.history.clear()
    assert_same_state(trainer, other)


def test_the_batch_with_the_mistake_is_named():
    good = (IMAGES, LABELS)
    for wrong, error, message in (
        ((IMAGES.astype("uint8"), LABELS), ShapeError, r"^batch 3: images have dtype uint8"),
        ((IMAGES, labels_with(3)), ShapeError, r"^batch 3: cross_entropy: 1 label"),
        ((IMAGES[:5], LABELS), ShapeError, r"^batch 3: 5 images, but 20 labels"),
        ((IMAGES[:0], LABELS[:0]), ShapeError, r"^batch 3: there are no images"),
        ((np.zeros((20, 6, 6, 2), "float32"), LABELS), ShapeError, r"^batch 3: samples have shape \(6, 6, 2\)"),
        ((array_api_strict.asarray(IMAGES), LABELS), MixedBackendsError, r"^batch 3: backend 'numpy' was handed"),
        (IMAGES, TypeError, r"^batch 3 of the source is a ndarray; expected a pair \(images, labels\); arrays are"),
        ((IMAGES, LABELS, 1), TypeError, r"^batch 3 of the source is a tuple; expected a pair"),
    ):
        for use in (Trainer.fit, Trainer.evaluate):
            with pytest.raises(error, match=message):
                use(plain(), [good, good, wrong])


# Sources


def test_a_generator_is_used_up_after_one_epoch():
    pair = (IMAGES, LABELS)
    for source in ((pair for _ in range(1)), iter([pair]), zip([IMAGES], [LABELS], strict=True)):
        with pytest.raises(TypeError, match=r"can be gone through only once.*give a list of batches, or an object"):
            plain().fit(source)
    with pytest.raises(TypeError, match="a generator can be gone through only once"):
        plain().fit(IMAGES, LABELS, validation_data=(pair for _ in range(1)))


def test_an_empty_source():
    for use in (Trainer.fit, Trainer.evaluate):
        for trainer in (plain(), plain().build(SHAPE)):
            with pytest.raises(ShapeError, match="the data set is empty: the source gave no batch"):
                use(trainer, [])


def test_what_is_no_source():
    with pytest.raises(TypeError, match=r"a int is neither arrays nor a source of batches \(images, labels\)"):
        plain().fit(3)
    with pytest.raises(TypeError, match=r"batch 1 of the source is a ndarray.*arrays are given as two arguments"):
        plain().fit((IMAGES, LABELS))


def test_a_data_set_in_the_place_of_its_arrays():
    data, trainer = digits(), plain()
    for use in (trainer.fit, trainer.evaluate, trainer.predict):
        with pytest.raises(TypeError, match=r"a Dataset holds .* give .*: d\.train_images, d\.train_labels or"):
            use(data)
    with pytest.raises(TypeError, match="a Dataset holds"):
        trainer.fit(IMAGES, LABELS, validation_data=data)


# Arrays of another backend


def test_arrays_of_another_backend(call):
    theirs = array_api_strict.asarray(IMAGES)
    message = r"backend 'numpy' was handed a array_api_strict\..*nothing is moved silently: bring it to the host first"
    with pytest.raises(MixedBackendsError, match=message):
        call(plain(), theirs, LABELS)
    with pytest.raises(MixedBackendsError, match=message):
        call(plain(), IMAGES, array_api_strict.asarray(LABELS))
    with pytest.raises(MixedBackendsError, match=message):
        plain().predict(theirs)


def test_tensors_on_numpy():
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.uint8):
        images = torch.asarray(IMAGES).to(dtype)
        for use in (lambda x: plain().fit(x, LABELS), lambda x: plain().predict(x)):
            with pytest.raises(MixedBackendsError, match=r"'numpy' was handed a torch\.Tensor; nothing is moved"):
                use(images)
    with pytest.raises(MixedBackendsError, match=r"handed a torch\.Tensor"):
        plain().fit(IMAGES, torch.asarray(LABELS))


@pytest.mark.eager
def test_host_arrays_are_welcome_everywhere_but_others_are_not(backend):
    if backend.name == "strict":
        torch = pytest.importorskip("torch")
        theirs = torch.asarray(IMAGES)
    else:
        theirs = array_api_strict.asarray(IMAGES)
    trainer = plain(backend).build(SHAPE)
    trainer.predict(IMAGES)
    with pytest.raises(MixedBackendsError, match=f"backend '{backend.name}' was handed"):
        trainer.predict(theirs)


# Numbers


@pytest.mark.parametrize("value", [0, -1, 2.5, "8", None])
def test_batch_size(value):
    for use in (Trainer.fit, Trainer.evaluate):
        with pytest.raises(ValueError, match=rf"batch_size={value!r}; expected an integer ≥ 1"):
            use(plain(), IMAGES, LABELS, batch_size=value)
    with pytest.raises(ValueError, match=rf"batch_size={value!r}; expected an integer ≥ 1"):
        plain().predict(IMAGES, batch_size=value)


@pytest.mark.parametrize("value", [-1, 1.0, None])
def test_epochs(value):
    with pytest.raises(ValueError, match=rf"epochs={value!r}; expected an integer ≥ 0"):
        plain().fit(IMAGES, LABELS, epochs=value)


# Model and loss


@pytest.mark.parametrize(
    ("last", "loss", "message"),
    [
        (Softmax(), "cross_entropy", r"contains the softmax, and the model ends in Softmax\(\): leave that layer out"),
        (LogSoftmax(), "cross_entropy", r"ends in LogSoftmax\(\): leave that layer out, or use loss='nll'"),
        (Softmax(), "nll", r"ends in Softmax\(\): end it in LogSoftmax\(\) instead"),
        (Dense(3), "nll", r"ends in Dense\(3\): end it in LogSoftmax\(\), or use loss='cross_entropy'"),
        (Sigmoid(), "binary_cross_entropy", r"contains the sigmoid: leave the last Sigmoid\(\) out"),
    ],
)
def test_models_that_end_in_the_wrong_layer(last, loss, message):
    for model in (Sequential([Flatten(), Dense(3), last]), Sequential([Flatten(), Sequential([Dense(3), last])])):
        with pytest.raises(ValueError, match=message):
            Trainer(model, loss, backend="numpy")


def test_class_weights_for_other_classes():
    for loss in (CrossEntropy((1.0, 2.0)), NLL((1.0,) * 4)):
        model = PLAIN if isinstance(loss, CrossEntropy) else Sequential([*PLAIN.layers, LogSoftmax()])
        with pytest.raises(ShapeError, match=r"\d class_weights for 3 classes"):
            Trainer(model, loss, backend="numpy").fit(IMAGES, LABELS)


def test_a_batch_of_one_in_batch_norm():
    """A variance needs two values; the message must come from the layer."""
    model = Sequential([Flatten(), BatchNorm(), Dense(CLASSES)])
    with pytest.raises(ShapeError, match=r"layer 1 \(BatchNorm\(\)\)"):
        plain(model=model).fit(IMAGES, LABELS, batch_size=19)
