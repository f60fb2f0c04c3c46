"""Reductions over the processes of torch.distributed, for counts and extremes on the CPU."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist

from ptq_course.errors import CalibrationError, UnsupportedError


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


def gather_texts(text: str, group: dist.ProcessGroup | None) -> list[str]:
    """The texts of all processes, none of them empty, by rank.

    They travel as tensors of bytes: an object would be unpickled, and a pickle can run any code.
    """
    sent = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size(group))]
    dist.all_gather(lengths, torch.tensor([len(sent)]), group)
    longest = max(int(length) for length in lengths)
    parts = [torch.empty(longest, dtype=torch.uint8) for _ in lengths]
    dist.all_gather(parts, torch.nn.functional.pad(sent, (0, longest - len(sent))), group)
    pairs = zip(parts, lengths, strict=True)
    return [part[: int(length)].numpy().tobytes().decode() for part, length in pairs]


def check_alike(kind: str, group: dist.ProcessGroup | None, label: str) -> None:
    """CalibrationError in every process unless all of them name the same kind.

    Other kinds send other things: asked first, no process waits for what another never sends.
    """
    found = list(dict.fromkeys(gather_texts(kind, group)))
    if len(found) > 1:
        raise CalibrationError(
            f"{label}: the processes reduce {', '.join(found)}: collect with the same kind of "
            "summary and the same settings in each"
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
