"""Reductions over the processes of torch.distributed, for counts and extremes on the CPU."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist

from ptq_course.errors import UnsupportedError


def check_group(group: dist.ProcessGroup | None, label: str) -> None:
    """Raise unless torch.distributed runs with a backend that reduces CPU tensors."""
    if not (dist.is_available() and dist.is_initialized()):
        raise UnsupportedError(
            f"{label}: all_reduce needs torch.distributed.init_process_group('gloo', ...)"
        )
    if "gloo" not in str(dist.get_backend(group)):
        raise UnsupportedError(
            f"{label}: the counts live on the CPU, where backend {dist.get_backend(group)} does "
            "not reach: pass group=torch.distributed.new_group(backend='gloo')"
        )


def agree_on_extremes(
    low: float, high: float, group: dist.ProcessGroup | None
) -> tuple[float, float]:
    """The smallest `low` and the largest `high` of all processes."""
    extremes = torch.tensor([-low, high], dtype=torch.float64)
    dist.all_reduce(extremes, dist.ReduceOp.MAX, group)
    return 0.0 - float(extremes[0]), float(extremes[1])


def sum_over_processes(numbers: np.ndarray, group: dist.ProcessGroup | None) -> np.ndarray:
    """The sum of int64 `numbers` over all processes."""
    total = torch.from_numpy(numbers)
    dist.all_reduce(total, dist.ReduceOp.SUM, group)
    return total.numpy()
