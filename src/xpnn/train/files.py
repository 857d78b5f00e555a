"""Weights and whole training states in files: safetensors, under PyTorch's names and in PyTorch's layout.

    weights      `0.weight`: conv kernels O,I,*k (here O,*k,I), transposed ones I,O,*k, dense (out, in)
    statistics   `1.running_mean`, `1.running_var`, and `1.num_batches_tracked`, which is not read back
    optimizer    `optimizer.<moment>.<path>`, laid out like the weight they belong to
    metadata     "xpnn": one JSON, the model and all that is no tensor; "xpnn.sha256": its hash

So a file without an optimizer loads in PyTorch as it is: `net.load_state_dict(safetensors.torch.load_file(path))`.
A sha256 of each tensor is checked on reading, and a file is either written whole or not at all.

Where each array lies there, and which order flat features have, is in `xpnn.train.torch_layout`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from stat import S_ISDIR, S_ISREG
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from xpnn.errors import FileFormatError
from xpnn.layers.base import Layer, Shape
from xpnn.layers.description import build, describe
from xpnn.train.torch_layout import Place, Places, place_arrays

FORMAT = 1
"""Version of the format of the metadata."""

Arrays = Mapping[str, NDArray[Any]]
PathLike = str | os.PathLike[str]

_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8"), "I64": np.dtype("<i8")}
_CODES = {"float32": "F32", "float64": "F64", "int64": "I64"}


@dataclass(frozen=True)
class Contents:
    """What a file holds; arrays are host arrays in xpnn's layout.

    `moments` is None in a file of weights alone. `dtype` is that of the weights; `meta` is what the writer
    handed in, as JSON gives it back (tuples come as lists).
    """

    model: Layer
    in_shape: Shape
    weights: dict[str, NDArray[Any]]
    stats: dict[str, NDArray[Any]]
    moments: dict[str, dict[str, NDArray[Any]]] | None
    meta: dict[str, Any]
    dtype: str


def write(
    path: PathLike,
    *,
    model: Layer,
    in_shape: Shape,
    weights: Arrays,
    stats: Arrays,
    moments: Mapping[str, Arrays] | None,
    meta: Mapping[str, Any],
) -> None:
    """Write weights, or with `moments` a whole state, into one file: all of it or, where that fails, nothing.

    Args:
        path: of the file; one that is there is replaced at the last moment.
        model: the model, any layer.
        in_shape: the shape of one sample.
        weights, stats: the model's arrays on the host, float32 or float64.
        moments: name of a moment → one array for each weight that has it; None: write no optimizer state.
        meta: further values for JSON; `meta["step"]` also becomes PyTorch's `num_batches_tracked`.

    Raises:
        OSError: the file cannot be written, e.g. the disk is full; the message names the folder.
    """
    from safetensors.numpy import save

    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name the file, e.g. {Path(path) / 'model.safetensors'}")
    places = place_arrays(model, in_shape)
    arrays = _tensors(places, weights, stats, moments, meta)
    kept = [a.dtype for n, a in weights.items()]
    header = json.dumps(
        {
            "format": FORMAT,
            "model": describe(model),
            "in_shape": list(in_shape),
            "dtype": np.result_type(*kept).name if kept else "float32",
            "moments": None if moments is None else list(moments),
            "meta": dict(meta),
            "tensors": {n: _digest(_CODES[a.dtype.name], a.shape, a.reshape(-1).data) for n, a in arrays.items()},
        },
        default=_plain,
    )
    data = save(arrays, metadata={"xpnn": header, "xpnn.sha256": sha256(header.encode()).hexdigest()})
    _replace(target, data)


def read(path: PathLike, custom_layers: Sequence[type[Layer]] = ()) -> Contents:
    """Read a file that `write` wrote, and check it: its hashes, and that the arrays are those of its model.

    Args:
        path: of the file.
        custom_layers: the classes of the model's layers that are not xpnn's own.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: the file is damaged, or none of xpnn's, or its model cannot be built.
    """
    tensors, header = _parse(path)
    if header is None:
        raise FileFormatError(
            f"{path} holds tensors but no model of xpnn (PyTorch writes such files); "
            "make the model yourself and load the weights into it with load_weights"
        )
    shape, names, meta, dtype = (header.get(key) for key in ("in_shape", "moments", "meta", "dtype"))
    if not (
        _is_list(shape, int)
        and (names is None or _is_list(names, str))
        and isinstance(meta, dict)
        and isinstance(dtype, str)
    ):
        raise FileFormatError(f"{path}: its metadata are not as xpnn writes them; load another copy of the file")
    try:
        model = build(header.get("model"), custom_layers)
    except FileFormatError as e:
        raise FileFormatError(f"{path}: {e}") from e
    in_shape: Shape = tuple(shape or ())
    places = _places(model, in_shape, path)
    moments = {
        name: (moment, weight)
        for moment in names or ()
        for weight in places.weights
        if (name := _moment(moment, weight)) in tensors
    }
    _match(path, places, tensors, {name: places.weights[weight] for name, (_, weight) in moments.items()})
    found: dict[str, dict[str, NDArray[Any]]] = {moment: {} for moment in names or ()}
    for name, (moment, weight) in moments.items():
        found[moment][weight] = _array(path, name, tensors[name], places.weights[weight])
    return Contents(model, in_shape, *_arrays(path, places, tensors), None if names is None else found, meta, dtype)


def load_weights(
    path: PathLike, model: Layer, in_shape: Shape
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Read the weights and statistics of a model from a file of xpnn's or of PyTorch's.

    A file of PyTorch's is `safetensors.torch.save_file(net.state_dict(), path)`: names and shapes must be those
    that `model` has in PyTorch. An optimizer's state in the file is passed over.

    Args:
        path: of the file.
        model: the model that the arrays are for; the file need not describe it.
        in_shape: the shape of one sample.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: the file is damaged, or the arrays do not fit the model; the message lists what does not.
    """
    tensors, header = _parse(path)
    places = place_arrays(model, in_shape)
    if header is not None:
        tensors = {n: t for n, t in tensors.items() if n in places.all or not n.startswith("optimizer.")}
    _match(path, places, tensors)
    return _arrays(path, places, tensors)


def in_shape(path: PathLike) -> Shape | None:
    """The shape of one sample that a file was written for; None where it does not tell, like PyTorch's."""
    _, header = _parse(path)
    shape: Any = (header or {}).get("in_shape")
    return tuple(shape) if _is_list(shape, int) else None


def _places(model: Layer, in_shape: Shape, path: PathLike) -> Places:
    """Where the arrays of the model that a file tells of lie."""
    try:
        return place_arrays(model, in_shape)
    except Exception as e:  # of a hand-made file, anything
        raise FileFormatError(f"{path}: its model does not fit its samples of shape {in_shape}: {e}") from e


def _moment(moment: str, weight: str) -> str:
    return f"optimizer.{moment}.{weight}"


# Arrays to tensors and back


def _tensors(
    places: Places, weights: Arrays, stats: Arrays, moments: Mapping[str, Arrays] | None, meta: Mapping[str, Any]
) -> dict[str, NDArray[Any]]:
    """All arrays of a state as PyTorch has them, little-endian and contiguous (safetensors scrambles any other)."""
    for kind, wanted, given in (("weights", places.weights, weights), ("statistics", places.stats, stats)):
        shapes = {n: p.shape for n, p in wanted.items()}
        if text := _compared(shapes, {n: tuple(np.shape(a)) for n, a in given.items()}):
            raise ValueError(f"these {kind} are not those of the model:\n{text}")
    arrays = {n: (a, places.all[n]) for n, a in [*weights.items(), *stats.items()]}
    for moment, tree in (moments or {}).items():
        if not moment or "." in moment:
            raise ValueError(f"a moment of the optimizer is called {moment!r}; give it a name without dots")
        for n, a in tree.items():
            if n not in weights or np.shape(a) != np.shape(weights[n]):
                raise ValueError(
                    f"moment {moment} of {n} has shape {np.shape(a)}; there is no such weight of this shape"
                )
            if _moment(moment, n) in arrays:
                raise ValueError(f"{_moment(moment, n)} is the name of a weight and of a moment; rename one")
            arrays[_moment(moment, n)] = a, places.weights[n]
    for n, (a, _) in arrays.items():
        if not isinstance(a, np.ndarray) or a.dtype.name not in ("float32", "float64"):
            came = f"an array of {a.dtype}" if isinstance(a, np.ndarray) else f"a {type(a).__name__}"
            raise TypeError(f"{n} is {came}; files are written from NumPy arrays of float32 or float64")
    step = np.array(int(meta.get("step", 0)), dtype="<i8")
    return {n: _row_major(place.to_torch(a)) for n, (a, place) in arrays.items()} | dict.fromkeys(places.counters, step)


def _row_major(a: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(a, dtype=a.dtype.newbyteorder("<"), order="C")  # ascontiguousarray would give 0-d an axis


def _array(path: PathLike, name: str, tensor: _Tensor, place: Place) -> NDArray[Any]:
    """A tensor of a file as an array of ours, with memory of its own."""
    if tensor.dtype not in ("F32", "F64"):
        raise FileFormatError(
            f"{path}: {name} is of type {tensor.dtype}; xpnn reads float32 (F32) and float64 (F64); "
            "convert it where it was made, e.g. net.float() in PyTorch before state_dict()"
        )
    a = np.frombuffer(tensor.data, _DTYPES[tensor.dtype]).reshape(tensor.shape)
    return np.array(place.from_torch(a), dtype=a.dtype.newbyteorder("="), order="C")


def _arrays(
    path: PathLike, places: Places, tensors: Mapping[str, _Tensor]
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    weights, stats = (
        {n: _array(path, n, tensors[n], p) for n, p in kind.items()} for kind in (places.weights, places.stats)
    )
    return weights, stats


def _match(
    path: PathLike, places: Places, tensors: Mapping[str, _Tensor], more: Mapping[str, Place] | None = None
) -> None:
    """Check that names and shapes of a file are those of a model."""
    wanted = {n: p.torch_shape for n, p in {**places.all, **(more or {})}.items()}
    found = {n: t.shape for n, t in tensors.items() if n not in places.counters}
    if text := _compared(wanted, found):
        raise FileFormatError(
            f"{path} does not fit the model, which has {len(wanted)} arrays; the file has {len(found)}:\n{text}\n"
            "Names and shapes are PyTorch's. Load it into a model of the same layers, or rename its tensors."
        )


def _compared(wanted: Mapping[str, Shape], found: Mapping[str, Shape]) -> str:
    """Where names and shapes differ, a few lines for each kind of difference; empty where they do not."""
    kinds = {
        "missing": [f"{n} {s}" for n, s in wanted.items() if n not in found],
        "not in the model": [f"{n} {found[n]}" for n in sorted(found.keys() - wanted.keys())],
        "of another shape": [
            f"{n} {found[n]}, the model has {s}" for n, s in wanted.items() if n in found and found[n] != s
        ],
    }
    lines = []
    for kind, entries in kinds.items():
        if entries:
            rest = [f"… and {len(entries) - 5} more"] if len(entries) > 6 else []
            shown = entries[:5] if rest else entries
            lines += [f"  {kind}, {len(entries)}:", *(f"    {e}" for e in (*shown, *rest))]
    return "\n".join(lines)


# Files


@dataclass(frozen=True)
class _Tensor:
    """A tensor as it lies in the file."""

    dtype: str
    shape: Shape
    data: bytes


def _parse(path: PathLike) -> tuple[dict[str, _Tensor], dict[str, Any] | None]:
    """The tensors of a file and xpnn's metadata, checked against their hashes; None: there are no metadata."""
    import safetensors

    rust: Any = safetensors  # its functions carry no types
    data = _bytes(path)
    _check_start(path, data)
    try:
        tensors = {name: _Tensor(t["dtype"], tuple(t["shape"]), t["data"]) for name, t in rust.deserialize(data)}
    except safetensors.SafetensorError as e:
        if (end := _end(data)) > len(data):
            _cut_short(path, end, len(data))
        raise FileFormatError(f"{path} is damaged ({e}); load another copy of it") from e
    metadata = _start(data).get("__metadata__") or {}
    if "xpnn" not in metadata:
        return tensors, None
    text = metadata["xpnn"]
    intact = metadata.get("xpnn.sha256") == sha256(text.encode()).hexdigest()
    if not intact and "xpnn.sha256" in metadata:
        raise FileFormatError(f"{path} is damaged: its metadata are not what was written; load another copy of it")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise FileFormatError(f"{path} is damaged: its metadata are no JSON ({e}); load another copy of it") from e
    version = header.get("format") if isinstance(header, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise FileFormatError(
            f"{path} was made by a newer xpnn (format {version}; this one reads {FORMAT}); "
            "upgrade: pip install --upgrade xpnn"
        )
    hashes = header.get("tensors") if isinstance(header, dict) else None
    if version != FORMAT or not intact or not isinstance(hashes, dict):
        raise FileFormatError(f"{path}: its metadata are not as xpnn writes them; load another copy of the file")
    for name in [*hashes, *tensors]:
        if name not in tensors or name not in hashes:
            where = "list, but not in the file" if name in hashes else "file, but not in its list"
            raise FileFormatError(f"{path} is damaged: the tensor {name} is in the {where}; load another copy of it")
        tensor = tensors[name]
        if _digest(tensor.dtype, tensor.shape, tensor.data) != hashes[name]:
            raise FileFormatError(
                f"{path} is damaged: the tensor {name} is not what was written (its sha256 differs); "
                "load another copy of it"
            )
    return tensors, header


def _bytes(path: PathLike) -> bytes:
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        folder = Path(path).absolute().parent
        why = "check the name" if folder.is_dir() else f"there is no folder {folder} either; check the path"
        raise FileNotFoundError(f"there is no file {path}; {why}") from None
    if S_ISDIR(mode):
        raise FileFormatError(f"{path} is a folder; name the file in it, e.g. {Path(path) / 'model.safetensors'}")
    if not S_ISREG(mode):
        raise FileFormatError(f"{path} is no regular file; name one")
    return Path(path).read_bytes()


def _check_start(path: PathLike, data: bytes) -> None:
    """Check that this is a safetensors file and holds all of its header."""
    if not data:
        raise FileFormatError(f"{path} is empty; load another copy of it")
    size = int.from_bytes(data[:8], "little")
    if data[8:9] not in (b"", b"{") or size > 100_000_000:  # the largest header that the format allows
        known = {
            b"PK\x03\x04": "a zip archive, as PyTorch's .pt and NumPy's .npz are",
            b"\x80": "a pickle",
            b"\x89HDF": "an HDF5 file, as Keras writes them",
            b"\x93NUMPY": "a NumPy array (.npy)",
        }
        kind = next((f" but {text}" for start, text in known.items() if data.startswith(start)), "")
        raise FileFormatError(
            f"{path} is no safetensors file{kind}; xpnn reads files that it wrote itself, and what PyTorch "
            "writes with safetensors.torch.save_file(net.state_dict(), path)"
        )
    if len(data) < 8 + size:
        _cut_short(path, 8 + size, len(data))


def _cut_short(path: PathLike, end: int, size: int) -> NoReturn:
    raise FileFormatError(f"{path} is cut short: {size} of at least {end} bytes are there; copy or download it again")


def _start(data: bytes) -> dict[str, Any]:
    """The header of a safetensors file."""
    header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header


def _end(data: bytes) -> int:
    """Where a safetensors file ends by its header; 0 where that cannot be read."""
    try:
        ends = [t["data_offsets"][1] for n, t in _start(data).items() if n != "__metadata__"]
        return 8 + int.from_bytes(data[:8], "little") + max(ends, default=0)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return 0


def _replace(target: Path, data: bytes) -> None:
    """Put `data` in the place of a file, so that at any moment the old or the new one is there, whole."""
    folder = target.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} to write {target.name} into; make it first")
    drop_stale(folder)
    temporary = folder / f".xpnn-{token_hex(8)}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            _parse(temporary)
        except FileFormatError as e:
            raise OSError(None, f"what was read back is not what was written ({e})") from e
        os.replace(temporary, target)
    except BaseException as e:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(e, OSError):
            raise
        left = f"; the {target.name} that was there is untouched" if target.exists() else ""
        text = f"cannot write {target.name} into the folder {folder}: {e.strerror}{left}"
        raise OSError(e.errno, f"{text}. Make room there, or choose another folder.") from e
    if sys.platform != "win32":
        with suppress(OSError):  # some file systems cannot: the file is there, but may not survive a power cut
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def drop_stale(folder: Path, seconds: float = 3600) -> None:
    """Remove what writers that were killed so many seconds ago have left behind."""
    for path in folder.glob(".xpnn-*.tmp"):
        with suppress(OSError):
            if path.stat().st_mtime <= time.time() - seconds:
                path.unlink()


def _digest(dtype: str, shape: Iterable[int], data: bytes | memoryview) -> str:
    digest = sha256(f"{dtype} {list(shape)} ".encode())
    digest.update(data)
    return digest.hexdigest()


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(v, kind) and not isinstance(v, bool) for v in value)


def _plain(value: Any) -> Any:
    """NumPy's numbers for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"meta holds {value!r}, which JSON cannot; hand in numbers, strings, booleans, None, lists, dicts")
