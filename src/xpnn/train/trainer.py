"""The trainer: data, masks, schedule, callbacks and files around an executor; `fit` has what one training counts.

It lives on the host and never touches a device array but through the executor; between two log lines it waits
for nothing on the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import cached_property
from math import prod
from operator import index
from pathlib import Path
from typing import Any

import numpy as np

from xpnn import backend as backends
from xpnn import losses
from xpnn.backend import Backend
from xpnn.data.augment import Augment
from xpnn.data.batches import ArrayBatches, Door, IterableBatches, StreamedBatches, stays, whole
from xpnn.data.dataset import Dataset
from xpnn.errors import ShapeError
from xpnn.layers.base import Layer
from xpnn.layers.check import blaming
from xpnn.ops._array import Array
from xpnn.optim import SGD, Constant, Optimizer, Schedule
from xpnn.random import Stream
from xpnn.train.callbacks import MOMENTS, Callback
from xpnn.train.executor import Executor, HostState, State
from xpnn.train.fit import Fit, Record, Source, Total


class Trainer:
    """Trains, evaluates and applies one model on one backend.

    Args:
        model: a layer, most often `Sequential`.
        loss: a name ("cross_entropy", "nll", "mse", "huber", "binary_cross_entropy") or a loss of `xpnn.losses`.
        optimizer: default `SGD(lr=0.05, momentum=0.9)`.
        schedule: of the learning rate, default constant.
        backend: a backend, its name, `"auto"`, or None for `XPNN_BACKEND`, else `"auto"`.
        device: which device, in the words of the backend's library.
        seed: the same seed gives the same weights, order and masks on every backend.
        dtype: "float32" or "float64"; images are cast to it.

    Attributes:
        step, samples, epochs: steps done, samples seen and epochs begun since the weights were drawn.
        history: the records of all epochs.
        position: where in a `fit` it stopped before its end, here or in the file it was loaded from; else None.

    Raises:
        BackendError: the backend is unknown or cannot be used here.
        ValueError: model and loss do not go together.
    """

    def __init__(
        self,
        model: Layer,
        loss: str | losses.Loss = "cross_entropy",
        optimizer: Optimizer | None = None,
        schedule: Schedule | None = None,
        *,
        backend: str | Backend | None = None,
        device: str | None = None,
        seed: int = 0,
        dtype: str = "float32",
    ) -> None:
        if not isinstance(model, Layer):
            raise TypeError(f"model is a {type(model).__name__}; expected a layer, e.g. Sequential([...])")
        self.model = model
        self.loss = losses.get(loss)
        self.loss.check_model(model)
        for given, kind, example in ((optimizer, Optimizer, "Adam(lr=1e-3)"), (schedule, Schedule, "Cosine()")):
            if not isinstance(given, kind | None):
                raise TypeError(f"{kind.__name__.lower()}={given!r}; expected one of xpnn.optim, e.g. {example}")
        self._optimizer = optimizer or SGD(lr=0.05, momentum=0.9)
        self.schedule = schedule or Constant()
        self.backend = backends.get(backend, device)
        try:
            self.seed = int(index(seed))
        except TypeError:
            raise TypeError(f"seed={seed!r}; expected an integer, from which all random numbers follow") from None
        if dtype not in ("float32", "float64"):
            raise ValueError(f"dtype={dtype!r}; expected 'float32' or 'float64'")
        self.backend.asarray([], dtype)  # raises, with the backend's own remedy, where the device lacks it
        self.dtype = dtype
        self.step = 0
        self.samples = 0
        self.epochs = 0
        self.history: list[Record] = []
        self.in_shape: tuple[int, ...] | None = None
        self.position: dict[str, Any] | None = None
        self._fit: Fit | None = None
        self._state: State | None = None

    def __repr__(self) -> str:
        size = "no weights yet"
        if self.in_shape is not None:
            size = f"{sum(map(prod, self.executor.shapes.values())):,} parameters for samples of {self.in_shape}"
        return f"<Trainer of {type(self.model).__name__} on {self.backend.name}: {size}, step {self.step}>"

    # What it holds

    def build(self, in_shape: Sequence[int]) -> Trainer:
        """Draw the initial weights for samples of shape `in_shape`; the first `fit` does it by itself."""
        in_shape = tuple(map(index, in_shape))
        if self.in_shape is None:
            self.model.shape(in_shape)  # raises where a layer does not fit
            with self._blaming(in_shape):
                weights, stats = self.model.init(in_shape, Stream(self.seed, "weights"))
                self.restore(in_shape, {"weights": weights, "stats": stats, "moments": {}})
        else:
            self._out_shape(in_shape)
        return self

    @property
    def optimizer(self) -> Optimizer:
        """How the gradient moves the weights; may be replaced by one of its kind, e.g. with a smaller `lr`."""
        return self._optimizer

    @optimizer.setter
    def optimizer(self, optimizer: Optimizer) -> None:
        if type(optimizer) is not type(self._optimizer):
            raise TypeError(
                f"{optimizer!r} cannot go on where {self._optimizer!r} left off; "
                "make a new Trainer, and take the weights there with save_weights and load_weights"
            )
        compiled_in = replace(optimizer, lr=self._optimizer.lr) != self._optimizer  # all but the learning rate is
        host = None if self._state is None or not compiled_in else self.host_state()
        self._optimizer = optimizer
        if host is not None and self.in_shape is not None:
            del self.executor
            self.restore(self.in_shape, host)

    @property
    def weights(self) -> dict[str, np.ndarray[Any, Any]]:
        """Copies of the weights on the host, by path."""
        weights: dict[str, np.ndarray[Any, Any]] = self.host_state()["weights"]
        return weights

    @property
    def stats(self) -> dict[str, np.ndarray[Any, Any]]:
        """Copies of the running statistics on the host, by path."""
        stats: dict[str, np.ndarray[Any, Any]] = self.host_state()["stats"]
        return stats

    @cached_property
    def executor(self) -> Executor:
        """What carries out the steps."""
        if self.in_shape is None:
            raise RuntimeError("the trainer has no weights yet: call fit, build(in_shape) or load_weights first")
        return self.backend.executor(self.model, self.loss, self.optimizer, self.in_shape, self.dtype)

    def host_state(self) -> HostState:
        """A copy of weights, statistics and moments on the host."""
        executor = self.executor
        assert self._state is not None
        return executor.save(self._state)

    def restore(self, in_shape: tuple[int, ...], host: HostState) -> None:
        """Take over a state from the host, for samples of shape `in_shape`."""
        if self.in_shape != in_shape:
            self.__dict__.pop("executor", None)
        self.in_shape = in_shape
        self._state = self.executor.load(host)

    # What it does

    def fit(
        self,
        images: Any,
        labels: Any = None,
        *,
        epochs: int = 1,
        batch_size: int = 128,
        validation_data: Any = None,
        augment: Augment | None = None,
        callbacks: Iterable[Callback] = (),
        resume: bool = False,
    ) -> list[Record]:
        """Train; a second call goes on from the first.

        Args:
            images: `(N, H, W, C)`, or a re-iterable source of batches `(images, labels)`. An `np.memmap` and
                `xpnn.data.Stored` stay where they are: no more than a few batches of them are in memory.
            labels: `(N,)` integers, or targets shaped like the model's output, as the loss asks for.
            epochs: how often to go through the data.
            batch_size: samples a step (for arrays; a source has its own).
            validation_data: `(images, labels)` or a source, evaluated after each epoch.
            augment: how the images of each step are changed, see `xpnn.data.augment`; those of `validation_data`
                are not.
            callbacks: objects that are told of the moments of training.
            resume: go on with the `fit` that was interrupted, here or in the file that this trainer was loaded
                from; the other arguments are those of then. It ends with the bits that it would have ended with.

        Returns:
            One record an epoch: `epoch, loss, accuracy, validation_loss, validation_accuracy, lr, seconds,
            images_per_second`. All records of this trainer are in `history`.

        Raises:
            ShapeError: data that do not fit the model, the loss or each other.
            NonFiniteError: data or loss are not finite; the weights are those before the step.
            ValueError: the model has no weights, or there is nothing to resume, or other arguments than then.
        """
        epochs = whole("epochs", epochs, 0)
        if not isinstance(augment, Augment | None):
            raise TypeError(f"augment={augment!r}; expected an Augment, e.g. xpnn.data.augment.recipe('mnist')")
        callbacks = _checked(callbacks)
        source = self._source(images, labels, batch_size)
        if not self.executor.shapes:
            raise ValueError(f"{self.model!r} has no weights: there is nothing to train, but evaluate and predict work")
        validation = None
        if validation_data is not None:
            pair = isinstance(validation_data, tuple) and len(validation_data) == 2
            pair = pair and not isinstance(validation_data[0], tuple)  # that is a source of two batches
            x, y = validation_data if pair else (validation_data, None)
            validation = self._source(x, y, batch_size)
        fit = Fit(self, source, epochs, augment, validated=validation is not None)
        if resume:
            fit.go_on(self.position)
        self._fit, self.position = fit, None
        begun: list[Callback] = []
        try:
            for callback in callbacks:
                callback.on_begin(fit)
                begun.append(callback)
            while len(fit.records) < epochs and not fit.stopped:
                with self.executor.session():
                    record = self._epoch(fit, callbacks)
                    if record is None:
                        break
                    if validation is not None:
                        record |= {f"validation_{k}": v for k, v in self._evaluate(validation).items()}
                fit.end_epoch(record)
                for callback in callbacks:
                    callback.on_epoch(fit, record)
        finally:
            with ExitStack() as ends:  # one that fails keeps no other from its end
                ends.callback(self._leave, fit)
                for callback in reversed(begun):
                    ends.callback(callback.on_end, fit)
        return fit.records

    def evaluate(self, images: Any, labels: Any = None, *, batch_size: int = 256) -> dict[str, float]:
        """Loss and, where answers can be right or wrong, accuracy over a data set; arguments as in `fit`."""
        source = self._source(images, labels, batch_size)
        with self.executor.session():
            return self._evaluate(source)

    def predict(self, images: Any, *, batch_size: int = 256) -> Any:
        """The model's output for each sample, as the caller's kind of array.

        Args:
            images: `(N, H, W, C)`, a NumPy array, one of this trainer's backend, or `xpnn.data.Stored`.
            batch_size: samples computed at a time.
        """
        batch_size = whole("batch_size", batch_size, 1)
        _refuse_data_set(images)
        x = self._door.let_in(images)
        self._out_shape(x.shape[1:])
        self.build(x.shape[1:])
        n, xp, executor, state = x.shape[0], self.backend.xp, self.executor, self._state
        assert state is not None
        starts = range(0, max(n, 1), batch_size)
        with executor.session():
            parts = [executor.predict(state, self._door.images(x[i : min(i + batch_size, n), ...])) for i in starts]
        y = parts[0] if len(parts) == 1 else xp.concat(parts)
        return y if self.backend.owns(images) else self.backend.to_numpy(y)

    # Files

    def save(self, path: str | Path) -> None:
        """Write the whole state to a safetensors file: weights, statistics, moments, counters and description."""
        from xpnn.train import checkpoint  # reading and writing files takes more imports than training

        checkpoint.save(self, path, whole=True)

    def save_weights(self, path: str | Path) -> None:
        """Write weights and statistics to a safetensors file that PyTorch loads as it is."""
        from xpnn.train import checkpoint

        checkpoint.save(self, path, whole=False)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        backend: str | Backend | None = None,
        device: str | None = None,
        custom_layers: Sequence[type[Layer]] = (),
    ) -> Trainer:
        """A trainer as `save` left it, on any backend.

        Raises:
            FileFormatError: not such a file, damaged, or with layers that are not in `custom_layers`.
        """
        from xpnn.train import checkpoint

        return checkpoint.load(cls, path, backend, device, custom_layers)

    def load_weights(self, path: str | Path, in_shape: Sequence[int] | None = None) -> Trainer:
        """Take weights and statistics from a file of `save_weights`, `save` or PyTorch; the optimizer begins anew.

        Args:
            path: a safetensors file whose names and shapes are those of this model.
            in_shape: shape of a sample, where the trainer was not built and the file does not tell it.

        Raises:
            FileFormatError: not such a file, or names and shapes are not the model's: it lists what differs.
        """
        from xpnn.train import checkpoint

        checkpoint.load_weights(self, path, in_shape)
        return self

    # How it does it

    @cached_property
    def _door(self) -> Door:
        return Door(self.backend, self.dtype, self.loss)

    def _blaming(self, in_shape: tuple[int, ...] | None) -> AbstractContextManager[None]:
        return blaming(self.model, in_shape or (), self.backend, self.dtype)

    def _source(self, images: Any, labels: Any, batch_size: int) -> Source:
        _refuse_data_set(images)
        if labels is not None:
            x = self._door.let_in(images)
            batches_of = StreamedBatches if stays(x) else ArrayBatches
            arrays = batches_of(self._door, x, labels, self._out_shape(x.shape[1:]), batch_size)
            self.build(x.shape[1:])  # once all is well: data that are refused settle no size
            return arrays
        if hasattr(images, "shape"):
            raise TypeError("images came without labels; give both, or a source of batches (images, labels)")
        if not hasattr(images, "__iter__"):
            raise TypeError(f"a {type(images).__name__} is neither arrays nor a source of batches (images, labels)")
        batches = IterableBatches(self._door, images, self._out_shape)
        if self.in_shape is None:
            self.build(batches.batch(0)[0].shape[1:])
        return batches

    def _out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the output for samples of shape `in_shape`; raises where that is not what they should be."""
        in_shape = tuple(in_shape)
        first = len(in_shape) == 3 and in_shape[0] <= 4 < in_shape[1] and in_shape[1] == in_shape[2]
        if self.in_shape is None and first:
            raise ShapeError(
                f"images of shape (N, {', '.join(map(str, in_shape))}) look as if channels came first; expected "
                "(N, H, W, C): np.moveaxis(images, 1, -1). Where they are channels last nonetheless, say so "
                f"beforehand: trainer.build({in_shape})"
            )
        if self.in_shape not in (None, in_shape):
            moved = first and (*in_shape[1:], in_shape[0]) == self.in_shape
            remedy = "np.moveaxis(images, 1, -1)" if moved else "bring them to that size, or make a new Trainer"
            if self.in_shape is not None and self.in_shape[1:] == in_shape:
                remedy = "a single image is a batch of one: images[None]"
            raise ShapeError(f"samples have shape {in_shape}, but this model was built for {self.in_shape}: {remedy}")
        return self.model.shape(in_shape)

    def _leave(self, fit: Fit) -> None:
        self._fit = None
        self.position = fit.position() if fit.between_steps else None

    def _epoch(self, fit: Fit, callbacks: Iterable[Callback]) -> Record | None:
        """The record of an epoch, or None where training was stopped in it."""
        try:
            for images, targets, host in fit.begin_epoch():
                lr = self.optimizer.lr * self.schedule(fit.progress)
                scalars = self.executor.scalars(self.loss.divisor(host), lr, self.step + 1)
                images = fit.augmented(images)
                draws = self._draws(self.samples, len(host))
                assert self._state is not None
                fit.between_steps = False
                self._state, metrics = self.executor.step(self._state, images, targets, draws, scalars)
                self.step += 1
                self.samples += len(host)
                fit.add(metrics, host, lr)
                fit.between_steps = True
                for callback in callbacks:
                    callback.on_step(fit)
                if fit.stopped and fit.step != fit.steps:
                    fit.check()
                    return None
        except BaseException:
            in_a_step = not fit.between_steps
            fit.settle()
            with self._blaming(self.in_shape) if in_a_step else nullcontext():
                raise
        return fit.record()

    def _draws(self, first: int, samples: int) -> Mapping[str, Array]:
        """The masks of a step, by the number of each sample since training began."""
        return {
            d.path: self.backend.asarray(
                Stream(self.seed, "draws").child(d.path).mask(first, samples, d.shape, d.probability)
            )
            for d in self.executor.draws
        }

    def _evaluate(self, source: Source) -> dict[str, float]:
        assert self._state is not None
        total = Total(self)
        for images, targets, host in source.epoch():
            total.add(self.executor.evaluate(self._state, images, targets), host)
        return total.sums().means(self.loss)


def _refuse_data_set(images: Any) -> None:
    if isinstance(images, Dataset):
        raise TypeError(
            "a Dataset holds images and labels to train on and to test on; give those that are meant: "
            "d.train_images, d.train_labels or d.test_images, d.test_labels"
        )


def _checked(callbacks: Any) -> tuple[Callback, ...]:
    """Callbacks as a tuple, once they are known to be some."""
    several = isinstance(callbacks, Iterable)
    given = tuple(callbacks) if several else (callbacks,)
    for came in given:
        if not several or isinstance(came, type) or not all(hasattr(came, moment) for moment in MOMENTS):
            hint = f" (call it: {came.__name__}(…))" if isinstance(came, type) else ""
            raise TypeError(f"callbacks takes a list of xpnn.Callback, e.g. [EarlyStopping(3)]; came {came!r}{hint}")
    return given
