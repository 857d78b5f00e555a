"""PyTorch as an array library, on the CPU or on CUDA: no autograd, no modules, no global setting touched."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from xpnn.backend import Backend
from xpnn.errors import BackendError
from xpnn.ops._array import Array


class TorchBackend(Backend):
    """Tensors on `"cpu"`, `"cuda"` or `"cuda:N"`; the default is PyTorch's own (the CPU, unless changed there).

    Tensors never require gradients. `auto` does not choose this backend: it is here to be compared with.
    """

    name: ClassVar[str] = "torch"
    requires: ClassVar[Mapping[str, str]] = {"torch": 'pip install "xpnn[torch]"'}

    def __init__(self, device: str | None = None) -> None:
        super().__init__(device)
        import array_api_compat.torch as xp
        import torch

        self.xp, self.device = xp, _device(torch, device)
        if self.device.type == "cpu":
            self.column_bytes = 1 << 23  # 1 MiB is too many calls, 1 GiB leaves the cache: up to twice as slow

    def asarray(self, x: Any, dtype: str | None = None, *, copy: bool | None = None) -> Array:
        """As `Backend.asarray`; tensors are cut off from autograd, and what tensors cannot share is copied."""
        if self.owns(x):
            x = x.detach()
        elif isinstance(x, np.ndarray) and (not x.flags.writeable or min(x.strides, default=0) < 0):
            copy = True  # PyTorch would write through the first, and refuses negative strides
        return super().asarray(x, dtype, copy=copy)

    def to_numpy(self, x: Array) -> np.ndarray[Any, Any]:
        """The values: on the CPU they share the memory of `x`, from a GPU they are a copy."""
        values: np.ndarray[Any, Any] = self.checked(x).numpy(force=True)
        return values

    def synchronize(self) -> None:
        """Wait for the GPU, where there is one to wait for."""
        if self.device.type == "cuda":
            self.xp.cuda.synchronize(self.device)

    @classmethod
    def peers(cls, work: Any, gpu: bool, threads: int, compiled: bool) -> list[Any]:
        """PyTorch with its own layers and gradients."""
        from xpnn_torch.peer import sides

        return sides(work, gpu, threads, compiled)

    def why_coarse(self) -> str | None:
        """Where this device's matrix products may take TF32 or bfloat16."""
        import torch

        place = "cuda_matmul" if self.device.type == "cuda" else "cpu_matmul"
        precision = _float32(torch.backends).get(place, "none")
        if precision in ("none", "ieee"):
            return None
        return f"torch computes float32 products in {precision}; call torch.set_float32_matmul_precision('highest')"

    def describe(self) -> dict[str, Any]:
        """Version, threads, GPU, and whether float32 is computed as TF32 or bfloat16."""
        import torch

        described = super().describe() | {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "float32": _float32(torch.backends),
        }
        if self.device.type == "cuda":
            gpu = torch.cuda.get_device_properties(self.device)
            described |= {
                "gpu": gpu.name,
                "compute_capability": f"{gpu.major}.{gpu.minor}",
                "memory": gpu.total_memory,
                "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),
            }
        return described


def _device(torch: Any, name: str | None) -> Any:
    """The device with its number, so that it equals what tensors say of theirs."""
    try:
        device = torch.get_default_device() if name is None else torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise BackendError(f"torch here takes the device 'cpu', 'cuda' or 'cuda:N', not {name or str(device)!r}")
    if device.type == "cpu":
        return torch.device("cpu")
    with warnings.catch_warnings(record=True) as caught:  # PyTorch says by a warning that the driver is too old
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        if not torch.backends.cuda.is_built():
            reason = f"torch {torch.__version__} was built without CUDA; install one with it: https://pytorch.org"
        elif caught:
            reason = str(caught[0].message)
        else:
            reason = "torch finds no GPU; see whether nvidia-smi does, and what CUDA_VISIBLE_DEVICES says"
        raise BackendError(f"torch has no device {str(device)!r} here: {reason}")
    index, count = device.index, torch.cuda.device_count()
    if index is None:
        index = torch.cuda.current_device()
    if index >= count:
        raise BackendError(f"there is no device 'cuda:{index}': torch sees {count} GPU(s), numbered from 0")
    return torch.device("cuda", index)


def _float32(backends: Any) -> dict[str, str]:
    """What stands in for float32 in products; "none" is float32 itself."""
    try:
        return {
            "cuda_matmul": backends.cuda.matmul.fp32_precision,
            "cudnn_conv": backends.cudnn.conv.fp32_precision,
            "cpu_matmul": backends.mkldnn.matmul.fp32_precision,
        }
    except AttributeError:  # before PyTorch 2.9; afterwards these may raise
        words = {True: "tf32", False: "none"}
        return {"cuda_matmul": words[backends.cuda.matmul.allow_tf32], "cudnn_conv": words[backends.cudnn.allow_tf32]}
