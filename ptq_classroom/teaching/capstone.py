"""Score a capstone's network on pictures that nobody has seen: they are drawn from the run's seed.

A student hands in the checkpoint that `ptq_course.deploy.checkpoint.save` writes. It is read and
run in a student's process, for it may be broken or hostile; the labels stay with the judge.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ptq_classroom.chapters.ch17 import task
from ptq_classroom.pictures.camera import to_input
from ptq_classroom.pictures.generator import EmojiGenerator
from ptq_classroom.teaching.seeds import mixed
from ptq_course.grids.metrics import paired_bootstrap

COUNT = 1000
SECONDS = 120.0  # to read the file and to run the pictures


@cache
def hidden(run: int) -> tuple[Tensor, Tensor, Tensor]:
    """(inputs, labels, what FP32 gets right) at dusk, drawn from the run's seed."""
    images, labels = EmojiGenerator(seed=mixed(17, run), shift=task.DUSK).batch(COUNT)
    x = to_input(images)
    with torch.no_grad():
        answers = torch.cat([task.network()(part).argmax(1) for part in x.split(250)])
    return x, labels, (answers == labels).double()


def verdict(name: str, answers: object, size: int, run: int) -> str:
    """One line about a network from the classes that it named. size: bytes of its file."""
    _, labels, before = hidden(run)
    if not isinstance(answers, Tensor) or answers.shape != labels.shape:
        return f"{name}: its process gave no answers"
    after = (answers == labels).double()
    mean, low, high = paired_bootstrap(before, after)
    share = size / sum(4 * p.numel() for p in task.network().parameters())
    kept = [title for title, budget in task.BUDGETS.items() if share <= budget]
    good = low >= -task.LIMIT and bool(kept)
    return (
        f"{name}: {100 * after.mean():.1f} % on {COUNT} hidden pictures, against FP32 "
        f"{100 * mean:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}); size {share:.3f} of "
        f"FP32 ({' and '.join(kept) or 'no class'}): {'accepted' if good else 'not accepted'}"
    )
