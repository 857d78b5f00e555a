import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import xpnn.data
from xpnn.data import Dataset, digits, load
from xpnn.data._digits import _held_out


@pytest.fixture(scope="module")
def data() -> Dataset:
    return digits()


def sha256(array: np.ndarray, dtype: str) -> str:
    return hashlib.sha256(array.astype(dtype).tobytes()).hexdigest()


def all_samples(data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Both parts in one, in the original order, which only the split itself knows."""
    held_out = np.zeros(1797, dtype=bool)
    held_out[held_out_indices()] = True
    images, labels = np.empty((1797, 8, 8, 1), np.float32), np.empty(1797, np.int64)
    images[held_out], images[~held_out] = data.test_images, data.train_images
    labels[held_out], labels[~held_out] = data.test_labels, data.train_labels
    return images, labels


def held_out_indices() -> np.ndarray:
    with np.load(Path(xpnn.data.__file__).parent / "digits" / "digits.npz", allow_pickle=False) as arrays:
        return np.flatnonzero(_held_out(arrays["labels"]))


def test_shapes_dtypes_and_range(data):
    assert data.train_images.shape == (1438, 8, 8, 1)
    assert data.test_images.shape == (359, 8, 8, 1)
    assert data.train_labels.shape == (1438,)
    assert data.test_labels.shape == (359,)
    for images in (data.train_images, data.test_images):
        assert images.dtype == np.float32
        assert images.min() == 0
        assert images.max() == 1
    for labels in (data.train_labels, data.test_labels):
        assert labels.dtype == np.int64
    assert data.classes == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")


def test_names_itself_and_its_licence(data):
    assert data.name == "digits"
    assert "Alpaydin" in data.source
    assert "10.24432/C50P49" in data.source
    assert "CC BY 4.0" in data.source
    licence = (Path(xpnn.data.__file__).parent / "digits" / "LICENSE.md").read_text(encoding="utf-8")
    assert "10.24432/C50P49" in licence
    assert "creativecommons.org/licenses/by/4.0" in licence


def test_equals_scikit_learn(data):
    theirs = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed").load_digits()
    images, labels = all_samples(data)
    np.testing.assert_array_equal(images[..., 0] * 16, theirs.images)
    np.testing.assert_array_equal(labels, theirs.target)


def test_equals_scikit_learn_by_checksum(data):
    # Of scikit-learn's arrays as uint8: holds where scikit-learn is missing.
    images, labels = all_samples(data)
    assert sha256(images * 16, "u1") == "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3"
    assert sha256(labels, "u1") == "8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0"


def test_class_counts(data):
    # UCI publishes 178, 182, 177, 183, 181, 182, 181, 179, 174, 180 in all; a fifth of each, rounded.
    train, test = np.bincount(data.train_labels), np.bincount(data.test_labels)
    np.testing.assert_array_equal(train + test, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    np.testing.assert_array_equal(test, [36, 36, 35, 37, 36, 36, 36, 36, 35, 36])


def test_parts_are_disjoint(data):
    train = {image.tobytes() for image in data.train_images}
    test = {image.tobytes() for image in data.test_images}
    assert len(train) + len(test) == 1797, "the 1,797 images all differ, so a repeat is a sample in both parts"
    assert not train & test


def test_split_is_pinned():
    order = held_out_indices()
    assert order.size == 359
    assert sha256(order, "<i8") == "7237e5144577e69251944ebd8e83b4d90dfb4d3fbcb82b19db716f9b3c14f803"


def test_split_ignores_numpys_global_seed(data):
    state = np.random.get_state()  # noqa: NPY002
    try:
        np.random.seed(5)  # noqa: NPY002
        again = digits()
    finally:
        np.random.set_state(state)  # noqa: NPY002
    np.testing.assert_array_equal(again.test_images, data.test_images)
    np.testing.assert_array_equal(again.train_labels, data.train_labels)


def test_split_is_mixed():
    # A split that takes the first or last samples of each class would leave a gap far above chance.
    assert np.diff(held_out_indices()).max() < 40


def test_each_call_gives_arrays_of_its_own(data):
    again = digits()
    again.train_images[:] = -1
    assert data.train_images.min() == 0
    assert digits().train_images.min() == 0


def test_cannot_be_changed_by_accident(data):
    with pytest.raises(AttributeError):
        data.name = "other"


def test_repr_is_short(data):
    assert len(repr(data)) < 400


def test_load_by_name(data):
    np.testing.assert_array_equal(load("digits").test_images, data.test_images)


@pytest.mark.parametrize(
    ("name", "hint"), [("mnits", " Did you mean 'mnist'?"), ("Digit", " Did you mean 'digits'?"), ("xyzzy", "")]
)
def test_unknown_name(name, hint):
    with pytest.raises(ValueError, match="There is no data set") as caught:
        load(name)
    known = "digits, mnist, fashion-mnist, kmnist, cifar10"
    assert str(caught.value) == (
        f"There is no data set {name!r}; the known ones are {known}.{hint} Nor is there such a file or folder: one's "
        "own images are a FILE.npz, or a FOLDER with one sub-folder a class."
    )


def test_data_file_is_small_and_needs_no_pickle():
    file = Path(xpnn.data.__file__).parent / "digits" / "digits.npz"
    assert file.stat().st_size < 60_000
    with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
        assert {name: arrays[name].dtype for name in arrays} == {"images": np.uint8, "labels": np.uint8}


def test_works_from_a_zip(tmp_path):
    # A zip has no files on the disk: whatever opens the data by path breaks here.
    package = Path(xpnn.data.__file__).parent
    archive = tmp_path / "wheel.zip"
    with zipfile.ZipFile(archive, "w") as wheel:
        wheel.writestr("xpnn/__init__.py", "")
        for module in ("errors.py", "random.py"):
            wheel.write(package.parent / module, f"xpnn/{module}")
        for file in package.rglob("*"):
            if file.is_file() and file.suffix != ".pyc":
                wheel.write(file, Path("xpnn/data") / file.relative_to(package))
    code = (
        f"import sys; sys.path.insert(0, {str(archive)!r}); import xpnn.data; "
        "assert 'wheel.zip' in xpnn.data.__file__; print(len(xpnn.data.digits().test_labels))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "359", result.stderr
