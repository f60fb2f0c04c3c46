"""Work shared by threads: NumPy and PyTorch let other threads run while they compute."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch

Result = TypeVar("Result")


def in_shares(
    function: Callable[[np.ndarray], Result], array: np.ndarray, least: int
) -> list[Result]:
    """The results of `function` on consecutive shares of `array`, in order, one thread a share.

    As many shares as PyTorch uses threads, but none of fewer than `least` elements: handing a share
    over costs some ten microseconds. The calling thread works too, and errors reach it.
    """
    count = max(1, min(torch.get_num_threads(), len(array) // least))
    first, *others = np.array_split(array, count)
    waiting = [_pool(os.getpid()).submit(function, share) for share in others]
    return [function(first), *(share.result() for share in waiting)]


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads of one process: one that is forked off inherits the pool, but no threads."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="ptq_course")
