"""The folder where xpnn keeps what it downloaded and decoded: `XPNN_CACHE`, else the user's cache folder."""

import os
import tempfile
from pathlib import Path


def folder(*parts: str) -> Path:
    """The path of a folder in the cache, which may not be there yet.

    Raises:
        ImportError: no `XPNN_CACHE` is set, and platformdirs, which knows the user's cache folder, is not installed.
    """
    root = os.environ.get("XPNN_CACHE")  # an empty variable is an unset one
    if root:
        return Path(root).expanduser().joinpath(*parts)
    try:
        import platformdirs
    except ImportError:
        raise ImportError(
            'platformdirs is not installed, which knows where the cache folder is; pip install "xpnn[train]", '
            "or name a folder by the environment variable XPNN_CACHE"
        ) from None
    return Path(platformdirs.user_cache_path("xpnn"), *parts)


def made(path: Path) -> Path:
    """The folder itself, made where it was not, after a trial whether one may write there.

    Raises:
        OSError: it cannot be made, or not be written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as e:
        raise cannot_write(path, e) from e
    return path


def cannot_write(path: Path, error: OSError) -> OSError:
    """The error of a cache that does not take what is written to it, with the remedy."""
    return OSError(
        f"cannot write to the cache folder {path} ({error.strerror or error}); make room there, or name a folder that "
        "you may write to by the environment variable XPNN_CACHE"
    )
