"""BLAS's own threads, taken away while the pieces of a step are the parallel work."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache, cached_property
from typing import Any, cast

import numpy as np


class _Blas:
    """Held to one thread by the first who enters, given back by the last who leaves.

    Limits are set and lifted by one thread of its own: threadpoolctl lets no other thread lift them, or set others
    before that one has left. So where another thread holds a limit of threadpoolctl's already, that one stays.
    """

    def __init__(self) -> None:
        self.lock, self.inside, self.limiter = threading.Lock(), 0, cast(Any, None)
        self.keeper = ThreadPoolExecutor(1, thread_name_prefix="xpnn-blas")

    @contextmanager
    def one_thread(self) -> Iterator[None]:
        limit = self.controller.limit
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self.limiter = self.keeper.submit(lambda: limit(limits=1, user_api="blas").__enter__())
        try:
            self.limiter.result()  # here, for an interrupt meanwhile has to count as leaving
            yield
        finally:
            with self.lock:
                self.inside -= 1
                if not self.inside:
                    entered = self.limiter
                    self.keeper.submit(lambda: entered.result().__exit__(None, None, None)).result()

    @cached_property
    def controller(self) -> Any:
        from threadpoolctl import ThreadpoolController

        return ThreadpoolController()  # finding the libraries takes a while: once is enough


@cache
def small_product() -> int:
    """Multiply-adds up to which a BLAS that is loaded multiplies matrices as they lie; 0: none has kernels for that."""
    small = {"SkylakeX", "Cooperlake", "SapphireRapids"}
    return 1_000_000 if any(blas.get("architecture") in small for blas in _blas.controller.info()) else 0


@cache
def touch_buffers(threads: int) -> None:
    """Have BLAS write to the buffers into which so many threads pack their matrices.

    OpenBLAS fetches ahead, past the panel that it multiplies by. Where that memory was never written there is no page,
    and each fetch searches the page tables for it: until some large product came by, small ones took twice as long.
    """
    wide = np.zeros((512, 1024), np.float32)
    start = threading.Barrier(threads)  # whoever multiplies alone would take the first buffer each time

    def multiply(_: int) -> None:
        with suppress(threading.BrokenBarrierError):
            start.wait()
        np.matmul(wide.T[:64], wide)

    with ThreadPoolExecutor(threads) as pool:
        try:
            list(pool.map(multiply, range(threads)))
        except BaseException:  # no thread to be had, or an interrupt: those that wait would do so for ever
            start.abort()
            raise


_blas = _Blas()
one_blas_thread = _blas.one_thread
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_blas.__init__)  # type: ignore[misc]  # the keeper stays with the parent
