"""The files of a known data set: from a folder of the user's, from the cache, or downloaded into it.

`files` looks in ``data_dir`` or ``XPNN_DATA`` first, in the subfolder of the set's name and in the folder itself, then
in the cache folder; what is missing there comes from the first mirror that hands it out whole.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import FileFormatError
from . import cache
from .known import KNOWN, Known
from .progress import bar, say

Find = Callable[[Path], tuple[dict[str, Path], list[str]]]
"""What a folder holds of a set: its files by part, and the names of those that are missing."""
_TIMEOUT = 30  # seconds without a byte


def files(name: str, data_dir: str | os.PathLike[str] | None, find: Find) -> dict[str, Path]:
    """The paths of the set's files by part, from the first folder that holds them all.

    Raises:
        FileNotFoundError: they are nowhere, and no mirror gave them: with all folders and addresses; or what is named
            as their folder is none.
        FileFormatError: a file of the user's is one of another known set.
        OSError: the cache folder cannot be written to.
    """
    looked = []
    for folder in _folders(name, data_dir):
        found, missing = find(folder)
        if not missing:
            for part, path in found.items():
                _refuse_anothers(name, part, path)
            return found
        absent = "all" if not found else ", ".join(missing)
        looked.append(f"{folder} (missing: {absent})" if folder.is_dir() else f"{folder} (no such folder)")
    where = f"Looked in {' and '.join(looked)}." if looked else "No data_dir given, and XPNN_DATA is not set."
    return find(_downloaded(name, KNOWN[name], where))[0]


def _folders(name: str, data_dir: str | os.PathLike[str] | None) -> list[Path]:
    # An empty variable is an unset one; Path("") would be the current folder.
    given = data_dir if data_dir is not None else os.environ.get("XPNN_DATA") or None
    if given is None:
        return []
    root = Path(given).expanduser()
    if data_dir is not None and not root.is_dir():
        why = "is a file" if root.exists() else "does not exist"
        raise FileNotFoundError(
            f"data_dir (--data-dir): {root} {why}; name the folder of the files, or none to download them"
        )
    return [root / name, root]


def _refuse_anothers(name: str, part: str, path: Path) -> None:
    """Raise where a file is known as another one than it is named: MNIST and its relatives share their file names."""
    digest = _sha256(path)
    if digest == KNOWN[name].files.get(part):
        return
    for other, known in KNOWN.items():
        for file, sha256 in known.files.items():
            if sha256 == digest:
                kind = "labels" if "labels" in file else "images"
                raise FileFormatError(
                    f"{path}: these are {known.title}'s {kind} ({file}, by its sha256), and {KNOWN[name].title}'s "
                    f"{part} was expected. Give each set a folder of its own: {path.parent / other} for these, "
                    f"{path.parent / name} for {KNOWN[name].title}'s files."
                )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _downloaded(name: str, known: Known, where: str) -> Path:
    """The set's folder in the cache, with all files in it."""
    try:
        folder = cache.folder(name)
        absent = [f for f, sha256 in known.files.items() if not _is_whole(folder / f, sha256)]
        if not absent:
            return folder
        import pooch
    except ImportError:
        remedy = 'To have it downloaded: pip install "xpnn[train]". Or '
        raise FileNotFoundError(_nowhere(known, where) + remedy + _by_hand(known)) from None
    cache.made(folder)
    for file in absent:
        said = []
        for mirror in known.mirrors:
            try:
                _download(pooch, mirror + file, folder, file, known.files[file])
                break
            except Exception as e:  # refused, cut off, wrong hash, no network: the next mirror may do better
                said.append(f"{mirror + file}: {_reason(e)}")
                if mirror != known.mirrors[-1]:
                    say(f"{said[-1]}; trying the next mirror")
        else:
            raise FileNotFoundError(
                f"{_nowhere(known, where)}The download into {folder} failed:\n  "
                + "\n  ".join(said)
                + f"\nTry again later, or: {_by_hand(known)}"
            )
    return folder


def _is_whole(path: Path, sha256: str) -> bool:
    return path.is_file() and _sha256(path) == sha256


def _download(pooch: Any, address: str, folder: Path, file: str, sha256: str) -> None:
    """Fetch one file: under its name only once it is whole and has this hash."""
    logger = pooch.get_logger()
    level, chunk = logger.level, 1 << 16
    with bar(f"downloading {address}", None, size=True) as show:
        downloader = pooch.HTTPDownloader(
            progressbar=_Progress(show),
            chunk_size=chunk,
            timeout=_TIMEOUT,
            headers={"Accept-Encoding": "identity"},  # the file as it is, so that its length is known
        )
        try:
            logger.setLevel("ERROR")  # the bar says it
            pooch.retrieve(address, f"sha256:{sha256}", fname=file, path=folder, downloader=downloader)
        finally:
            logger.setLevel(level)


def _reason(error: Exception) -> str:
    """What went wrong; of a failed connection the innermost cause, without the address once more."""
    text = str(error).partition("Caused by ")[2].rpartition(": ")[2].rstrip("'\")")
    return text + ")" * (text.count("(") - text.count(")")) if text else str(error)


class _Progress:
    """What pooch tells of a download, in tqdm's words, shown by `bar`."""

    total = 0

    def __init__(self, show: Callable[..., Any]) -> None:
        self.show, self.done = show, 0

    def update(self, size: int) -> None:
        self.done = min(self.done + size, self.total)  # pooch counts whole chunks
        self.show(completed=self.done, total=self.total or None)

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        pass


def _nowhere(known: Known, where: str) -> str:
    if len(known.files) == 1:
        needs = f"the file {', '.join(known.files)}, or what is in it,"
    else:
        needs = f"the four files {', '.join(file.removesuffix('.gz') for file in known.files)} (plain or .gz)"
    return f"{known.title} needs {needs} in one folder. {where} "


def _by_hand(known: Known) -> str:
    them = "them" if len(known.files) > 1 else "it"
    return (
        f"fetch {them} from {' or '.join(known.mirrors)} and name the folder by data_dir (--data-dir) or the "
        "environment variable XPNN_DATA."
    )
