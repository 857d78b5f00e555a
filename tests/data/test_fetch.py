"""Files of the public sets: found, refused, downloaded; the mirrors are servers of this process."""

import errno
import gzip
import hashlib
import os
import sys
import tempfile
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from test_idx import idx, small_files, write_files

from xpnn.data import KNOWN, NAMES, fetch, load
from xpnn.data.known import TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS
from xpnn.errors import FileFormatError

pooch = pytest.importorskip("pooch")
pytest.importorskip("platformdirs")

CONTENT = {f"{name}.gz": gzip.compress(idx(array), mtime=0) for name, array in small_files().items()}
SHA256 = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}


class Mirror:
    """A server of the four files; `faults` says of some what goes wrong with them."""

    def __init__(self):
        mirror = self
        self.faults, self.asked, self.encodings, self.closed = {}, [], set(), threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                file = self.path.rpartition("/")[2]
                mirror.asked.append(file)
                mirror.encodings.add(self.headers["Accept-Encoding"])
                content, fault = CONTENT[file], mirror.faults.get(file)
                self.send_response(503 if fault == "refused" else 200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if fault == "wrong":
                    content = content[:-1] + b"x"
                if fault in ("cut off", "silent"):
                    content = content[: len(content) // 2]
                self.wfile.write(content)
                if fault == "silent":
                    mirror.closed.wait(60)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/set/"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        self.closed.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def mirrors(monkeypatch):
    """Two mirrors of a small KMNIST, which is nowhere else."""
    both = Mirror(), Mirror()
    monkeypatch.setitem(
        KNOWN, "kmnist", replace(KNOWN["kmnist"], files=SHA256, mirrors=(both[0].address, both[1].address))
    )
    yield both
    for mirror in both:
        mirror.close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.delenv("XPNN_DATA", raising=False)
    monkeypatch.setenv("XPNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def assert_small(data):
    np.testing.assert_array_equal(data.train_labels, [7, 0, 9])
    np.testing.assert_array_equal(data.test_labels, [1, 2])
    np.testing.assert_array_equal(np.rint(data.train_images * 255).ravel(), np.arange(3 * 784) % 256)


def failure(*arguments):
    with pytest.raises(FileNotFoundError) as caught:
        load("kmnist", *arguments)
    return str(caught.value)


# Downloads


def test_downloads_once_and_says_so(mirrors, cache, capsys):
    assert_small(load("kmnist"))
    assert sorted(path.name for path in (cache / "kmnist").iterdir()) == sorted(CONTENT)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [f"downloading {mirrors[0].address}{file}" for file in CONTENT]
    assert_small(load("kmnist"))
    assert mirrors[0].asked == list(CONTENT)
    assert mirrors[0].encodings == {"identity"}  # else the length is that of something else
    assert mirrors[1].asked == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("fault", ["wrong", "cut off", "refused", "silent"])
def test_goes_on_from_the_other_mirror(mirrors, cache, fault, capsys, monkeypatch):
    monkeypatch.setattr(fetch, "_TIMEOUT", 0.5 if fault == "silent" else 30)
    mirrors[0].faults = {TRAIN_LABELS: fault}
    assert_small(load("kmnist"))
    assert mirrors[1].asked == [TRAIN_LABELS]
    reason = {"wrong": "hash", "cut off": "IncompleteRead", "refused": "503", "silent": "timed out"}[fault]
    line = next(line for line in capsys.readouterr().err.splitlines() if "next mirror" in line)
    assert line.startswith(f"{mirrors[0].address}{TRAIN_LABELS}: ")
    assert reason in line
    assert sorted(path.name for path in (cache / "kmnist").iterdir()) == sorted(CONTENT)  # and no part of one


def test_server_that_is_gone(mirrors):
    mirrors[0].close()
    assert_small(load("kmnist"))
    assert mirrors[1].asked == list(CONTENT)


def test_all_mirrors_fail(mirrors, tmp_path, cache):
    mirrors[0].faults, mirrors[1].faults = {TRAIN_IMAGES: "cut off"}, {TRAIN_IMAGES: "refused"}
    text = failure(tmp_path)
    assert "KMNIST needs the four files train-images-idx3-ubyte, train-labels-idx1-ubyte, " in text
    assert f"Looked in {tmp_path / 'kmnist'} (no such folder) and {tmp_path} (missing: all)." in text
    assert f"The download into {cache / 'kmnist'} failed" in text
    for mirror, reason in zip(mirrors, ("IncompleteRead", "503"), strict=True):
        line = next(line for line in text.splitlines() if line.strip().startswith(mirror.address + TRAIN_IMAGES))
        assert reason in line
    assert "Try again later, or: fetch them from" in text
    assert "--data-dir" in text
    assert not any((cache / "kmnist").iterdir())


def test_a_folder_that_is_none_begins_no_download(mirrors, tmp_path):
    (tmp_path / "file").touch()
    for name, why in (("nowhere", "does not exist"), ("file", "is a file")):
        text = failure(tmp_path / name)
        assert text.startswith(f"data_dir (--data-dir): {tmp_path / name} {why}; name the folder of the files, or none")
    assert mirrors[0].asked == []


def test_a_variable_that_names_no_folder_is_no_reason_not_to_download(mirrors, tmp_path, monkeypatch):
    monkeypatch.setenv("XPNN_DATA", str(tmp_path / "nowhere"))
    assert_small(load("kmnist"))


def test_what_came_before_the_failure_stays(mirrors):
    for mirror in mirrors:
        mirror.faults = {TEST_LABELS: "refused"}
    failure()
    for mirror in mirrors:
        mirror.faults, mirror.asked = {}, []
    assert_small(load("kmnist"))
    assert mirrors[0].asked == [TEST_LABELS]


def test_a_damaged_file_in_the_cache_is_fetched_again(mirrors, cache):
    load("kmnist")
    (cache / "kmnist" / TRAIN_LABELS).write_bytes(b"damaged")
    assert_small(load("kmnist"))
    assert mirrors[0].asked == [*CONTENT, TRAIN_LABELS]


def test_offline_names_the_innermost_reason(monkeypatch):
    text = failure()  # the suite's proxy refuses
    assert "No data_dir given, and XPNN_DATA is not set." in text
    assert "https://codh.rois.ac.jp/kmnist/dataset/kmnist/train-images-idx3-ubyte.gz: " in text
    assert "Max retries" not in text


def test_the_reason_keeps_its_brackets():
    error = OSError("Max retries (Caused by NameError(\"x: Failed to resolve 'a.b' ([Errno -2] Name not known)\"))")
    assert fetch._reason(error) == "Failed to resolve 'a.b' ([Errno -2] Name not known)"


@pytest.mark.parametrize("missing", ["pooch", "platformdirs"])
def test_without_the_packages(monkeypatch, tmp_path, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    if missing == "platformdirs":
        monkeypatch.delenv("XPNN_CACHE")
    text = failure(tmp_path)
    remedy = f'To have it downloaded: pip install "xpnn[train]". Or fetch them from {KNOWN["kmnist"].mirrors[0]} and'
    assert f"{tmp_path} (missing: all). {remedy}" in text


def test_the_cache_needs_no_pooch(mirrors, monkeypatch):
    load("kmnist")
    monkeypatch.setitem(sys.modules, "pooch", None)
    assert_small(load("kmnist"))


def test_cache_that_cannot_be_written(mirrors, cache):
    cache.write_text("a file in its place")
    with pytest.raises(OSError, match=r"cannot write to the cache folder .*kmnist \(.+\); .* XPNN_CACHE"):
        load("kmnist")
    assert mirrors[0].asked == []


def test_cache_that_is_there_and_cannot_be_written(mirrors, cache, monkeypatch):
    def read_only(dir):
        raise OSError(errno.EROFS, "Read-only file system")

    (cache / "kmnist").mkdir(parents=True)
    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    with pytest.raises(OSError, match=r"cannot write to the cache folder .*kmnist \(Read-only file system\); make"):
        load("kmnist")
    assert mirrors[0].asked == []


def test_the_users_cache_folder(monkeypatch):
    import platformdirs

    monkeypatch.setenv("XPNN_CACHE", "")
    assert fetch.cache.folder("mnist") == platformdirs.user_cache_path("xpnn") / "mnist"


def test_a_bar_on_a_terminal(mirrors, monkeypatch):
    rich = pytest.importorskip("rich.progress")
    seen = []
    update = rich.Progress.update
    monkeypatch.setattr(rich.Progress, "update", lambda s, task, **v: (seen.append(v), update(s, task, **v)))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert_small(load("kmnist"))
    whole = {len(content) for content in CONTENT.values()}
    assert whole == {v["completed"] for v in seen} == {v["total"] for v in seen}


# What the user has


def test_files_of_the_users_come_first(mirrors, tmp_path):
    write_files(tmp_path, small_files())
    assert_small(load("kmnist", tmp_path))
    assert mirrors[0].asked == []


def test_the_sets_own_subfolder_comes_before_the_folder(tmp_path, monkeypatch):
    write_files(tmp_path, small_files(test_labels=np.array([5, 5], np.uint8)))
    write_files(tmp_path / "fashion-mnist", small_files())
    monkeypatch.setenv("XPNN_DATA", str(tmp_path))
    assert_small(load("fashion-mnist"))
    assert load("mnist").test_labels.tolist() == [5, 5]


def test_files_of_another_set_are_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(KNOWN, "fashion-mnist", replace(KNOWN["fashion-mnist"], files=SHA256))
    for file, content in CONTENT.items():
        (tmp_path / file).write_bytes(content)
    load("fashion-mnist", tmp_path)
    with pytest.raises(FileFormatError) as caught:
        load("mnist", tmp_path)
    text = str(caught.value)
    assert text.startswith(
        f"{tmp_path / TRAIN_IMAGES}: these are Fashion-MNIST's images ({TRAIN_IMAGES}, by its sha256)"
    )
    assert f"Give each set a folder of its own: {tmp_path / 'fashion-mnist'} for these" in text


def test_test_labels_in_place_of_the_training_labels_are_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(KNOWN, "mnist", replace(KNOWN["mnist"], files=SHA256))
    for file in CONTENT:
        (tmp_path / file).write_bytes(CONTENT[TEST_LABELS if file == TRAIN_LABELS else file])
    with pytest.raises(FileFormatError, match=f"these are MNIST's labels \\({TEST_LABELS}, by its sha256"):
        load("mnist", tmp_path)


# The description


def test_what_is_known_of_each_set():
    assert NAMES == ("digits", "mnist", "fashion-mnist", "kmnist", "cifar10")
    for known in KNOWN.values():
        assert len(known.classes) == len(set(known.classes)) == 10
        assert all(address.startswith("https://") and address.endswith("/") for address in known.mirrors)
        assert all(len(bytes.fromhex(sha256)) == 32 for sha256 in known.files.values())
    hashes = [sha256 for known in KNOWN.values() for sha256 in known.files.values()]
    assert len(hashes) == len(set(hashes)) == 13


REAL = os.environ.get("XPNN_DATA")


def test_real_files_have_the_hashes():
    if not REAL or not (Path(REAL) / "mnist" / TRAIN_IMAGES).is_file():
        pytest.skip("the real MNIST files are not in XPNN_DATA/mnist")
    for file, sha256 in KNOWN["mnist"].files.items():
        assert hashlib.sha256((Path(REAL) / "mnist" / file).read_bytes()).hexdigest() == sha256
