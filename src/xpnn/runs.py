"""A run's folder: what is in it, and how a run is read back.

config.toml            all that the run was begun with; `xpnn train --config` takes it
summary.json           what it is, where it ran, how it ended
metrics.jsonl          one line an epoch; events.out.tfevents.…: the same for TensorBoard
last.safetensors       the whole state, from which `xpnn train --resume` goes on
best.safetensors       the state after the best epoch
pictures/, report.html what `xpnn show` draws
"""

from __future__ import annotations

import json
import shlex
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xpnn import data
from xpnn.backend import Backend
from xpnn.data import Dataset
from xpnn.errors import FileFormatError
from xpnn.train import Trainer
from xpnn.train.callbacks import to_json
from xpnn.train.files import drop_stale

Config = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run, by its folder."""

    path: Path
    config: Config

    @property
    def quoted(self) -> str:
        """The folder, as a shell takes it."""
        return shlex.quote(str(self.path))

    @property
    def again(self) -> str:
        """The command that goes on with it."""
        return f"xpnn train --out {self.quoted} --resume"

    def file(self, name: str) -> Path:
        """The path of a file in the folder."""
        return self.path / name

    def trainer(self, backend: str | Backend | None = None, device: str | None = None, which: str = "last") -> Trainer:
        """The trainer as it was after the last or the best epoch ("last", "best"), on any backend.

        Raises:
            FileNotFoundError: that state was never written.
            FileFormatError: the file is damaged.
        """
        file, other = self.file(f"{which}.safetensors"), "best" if which == "last" else "last"
        instead = f"take --checkpoint {other}" if self.file(f"{other}.safetensors").exists() else ""
        if not file.exists():
            why = "no epoch is complete" if which == "best" else "none was written"
            anew = "begin a new run in another folder" if self.lost() else f"go on with the run: {self.again}"
            raise FileNotFoundError(f"there is no checkpoint {file}: {why}, or it was removed; {instead or anew}")
        try:
            return Trainer.load(file, backend=backend or self.config["backend"], device=device)
        except FileFormatError as e:
            raise FileFormatError(f"{e}, or {instead}" if instead else str(e)) from None

    def lost(self) -> bool:
        """Whether epochs are done, and the state after the last of them is gone."""
        metrics = self.file("metrics.jsonl")
        done = self.file("best.safetensors").exists() or (metrics.exists() and metrics.stat().st_size > 0)
        return done and not self.file("last.safetensors").exists()

    def dataset(self, data_dir: str | Path | None = None) -> Dataset:
        """The data set that it was trained on.

        Raises:
            FileNotFoundError: one's own images are no longer where they were.
        """
        own = self.config["dataset"]
        if own not in data.NAMES and not Path(own).exists():
            raise FileNotFoundError(
                f"{own}, the images of the run in {self.path}, is no longer there; put it back, or write where it is "
                f"now into {self.file('config.toml')}: dataset = …"
            )
        options = {name: self.config[name] for name in ("image_size", "skip_corrupt") if name in self.config}
        return data.load(self.config["dataset"], data_dir or self.config.get("data_dir"), **options)

    def history(self) -> list[dict[str, Any]]:
        """The records of its epochs."""
        return [json.loads(line) for line in self.file("metrics.jsonl").read_text(encoding="utf-8").splitlines()]

    def summary(self) -> dict[str, Any]:
        """What it is, where it ran, how it ended; `status` is "running", "interrupted", "failed" or "finished"."""
        file = self.file("summary.json")
        again = f"the run writes it again: {self.again}"
        try:
            summary: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no file {file}; {again}") from None
        except ValueError as e:
            raise ValueError(f"{file} is damaged ({e}); {again}") from None
        return summary

    def finished(self) -> bool:
        """Whether all of it is done: a whole summary says so, and the checkpoint is there."""
        try:
            return self.file("last.safetensors").exists() and bool(self.summary()["status"] == "finished")
        except (OSError, ValueError):
            return False

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Put a new summary in the place of the old one."""
        temporary = self.file(".summary.json")
        temporary.write_text(to_json(summary, indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.file("summary.json"))

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other processes from training in the folder.

        Raises:
            ValueError: another one does.
        """
        with self.file("config.toml").open("r+", encoding="utf-8") as file:  # NFS locks what is open for writing
            with suppress(ImportError, OSError):  # Windows has no such locks, nor have some file systems
                import fcntl

                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it ends with the process, however that ends
                except BlockingIOError:
                    raise ValueError(
                        f"another process is training in {self.path}; wait until it is done, or choose another --out"
                    ) from None
            drop_stale(self.path, seconds=0)  # nobody else writes here
            yield


def new_run(path: Path | None, config: Config) -> Run:
    """Make the folder of a new run, before training, so that no result is lost for want of one.

    Args:
        path: of the folder; it may be there where it is empty. None: `runs/<data set>-<model>-<backend>-<time>`.
        config: what the run is begun with: strings, numbers, booleans.

    Raises:
        OSError: the folder cannot be written.
        ValueError: it is not empty.
    """
    folder = path or Path("runs") / "-".join([
        Path(config["dataset"]).stem, config["model"], config["backend"], time.strftime("%Y%m%d-%H%M%S"),
    ])  # fmt: skip
    try:
        if path is None:
            folder = _made(folder)
        else:
            folder.mkdir(parents=True, exist_ok=True)
        there = sorted(p.name for p in folder.iterdir())
        if there:
            resume = f"go on with its run: {Run(folder, {}).again}" if "config.toml" in there else "choose another"
            raise ValueError(
                f"--out {folder}: the folder is not empty ({', '.join(there[:3])}{', …' if there[3:] else ''}), and a "
                f"run would mix with what it holds; {resume}"
            )
        with (folder / "config.toml").open("x", encoding="utf-8") as file:  # of two that begin at once, one is refused
            file.write("".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in config.items()))
    except FileExistsError as e:
        if e.filename and Path(e.filename).name == "config.toml":
            raise ValueError(f"--out {folder}: another run has just begun there; choose another folder") from None
        raise _cannot_write(folder, e) from e
    except OSError as e:
        raise _cannot_write(folder, e) from e
    return Run(folder, config)


def open_run(path: str | Path) -> Run:
    """The run in a folder.

    Raises:
        FileNotFoundError: there is no such folder, or no run in it.
        ValueError: its configuration cannot be read, or is not whole.
    """
    folder = Path(path)
    if not (folder / "config.toml").is_file():
        known = [str(run) for run in dict.fromkeys([*_by_age(Path("runs")), *_by_age(folder)])]
        what = "holds no run: it has no config.toml" if folder.is_dir() else "is no folder"
        hint = f"; there are {', '.join(known[-3:])}" if known else "; `xpnn train` makes one"
        if not folder.is_dir() and (folder.parent / "config.toml").is_file():
            hint = f"; the run is {folder.parent}"
        raise FileNotFoundError(f"{folder} {what}{hint}")
    config = read_config(folder / "config.toml")
    if missing := [key for key in ("dataset", "model", "backend") if key not in config]:
        raise ValueError(
            f"{folder / 'config.toml'} lacks {', '.join(missing)}: it was cut short or changed; restore it, or begin "
            "the run again in another folder"
        )
    return Run(folder, config)


def newest_run(folder: Path) -> Run:
    """The run in `folder` that was begun last.

    Raises:
        FileNotFoundError: there is none.
    """
    found = _by_age(folder)
    if not found:
        raise FileNotFoundError(f"there is no run in {folder.absolute()}; name its folder, by --out")
    return open_run(found[-1])


def read_config(path: Path) -> Config:
    """The values of a configuration; which keys there may be is for the reader to say."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}; a run's folder has one: RUN/config.toml") from None
    except IsADirectoryError:
        raise IsADirectoryError(f"{path} is a folder; expected a file, e.g. {path / 'config.toml'}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ValueError(f"{path} is not TOML: {e}") from e


def _by_age(folder: Path) -> list[Path]:
    """The folders of the runs in `folder`, the newest last."""
    return [p.parent for p in sorted(folder.glob("*/config.toml"), key=lambda p: p.stat().st_mtime)]


def _made(folder: Path) -> Path:
    """A new folder of this name, or of this name and a number, which no other run of the same second has."""
    folder.parent.mkdir(exist_ok=True)
    number, found = 1, folder
    while True:
        try:
            found.mkdir()
            return found
        except FileExistsError:
            number += 1
            found = folder.with_name(f"{folder.name}-{number}")


def _cannot_write(folder: Path, e: OSError) -> OSError:
    with suppress(OSError):
        folder.rmdir()  # only where it is empty
    why = f"{e.filename} is a file" if isinstance(e, FileExistsError) else e.strerror
    return OSError(f"--out {folder}: cannot write there ({why}); choose a folder that you may write to")
