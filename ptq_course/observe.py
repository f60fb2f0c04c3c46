"""Observation: run calibration data through a traced model and collect statistics of its values.

The second of the five steps (chapter 06). Nothing is decided here: a summary per tensor value comes
out, and any range rule can read it later without a second pass over the data.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from tqdm.auto import tqdm

from ptq_course.errors import CalibrationError, QuantizationError
from ptq_course.summaries import Summary


class Observer(nn.Module):
    """Passes a tensor on unchanged and updates its summaries."""

    def __init__(self, name: str, summaries: dict[type[Summary], Summary]) -> None:
        super().__init__()
        self.name = name
        self.summaries = summaries

    def forward(self, x: Tensor) -> Tensor:
        for summary in self.summaries.values():
            try:
                summary.update(x)
            except QuantizationError as error:
                raise CalibrationError(f"value {self.name!r}: {error}") from error
        return x


def run(
    model: nn.Module,
    loader: Iterable,
    *,
    input_names: list[str],
    optional_names: Sequence[str] = (),
    num_batches: int | None = None,
    progress: bool = True,
) -> tuple[int, Any]:
    """Forward ``loader``'s batches through ``model`` without gradients.

    A batch is a tensor, a tuple ``(x, y, ...)`` whose first entries are the model's inputs, or a
    dict from which the model's inputs are taken by name (labels are never needed). Returns how many
    batches it ran, and the first one. Raises CalibrationError where none came or one does not fit.
    """
    if num_batches is not None and num_batches < 1:
        raise CalibrationError(f"num_batches must be at least 1, got {num_batches}.")
    optional = set(optional_names)
    length = operator.length_hint(loader, -1)  # a loader of a stream has a len() that raises
    total = min((n for n in (length, num_batches) if n is not None and n >= 0), default=None)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    done, first = 0, None
    taken = islice(loader, num_batches)  # not one more, which an iterator could not give again
    batches = tqdm(taken, total=total, desc="calibrating", unit="batch", disable=not progress)
    with torch.no_grad():
        for batch in batches:
            if done == 0 and isinstance(batch, Mapping) and optional & set(batch):
                warnings.warn(
                    f"the batch also gives {sorted(optional & set(batch))}, which the model takes "
                    "as an option. Options keep their default here; wrap the model in one whose "
                    "forward() needs them, if they matter.",
                    stacklevel=3,
                )
            model(*[x.to(device) for x in model_inputs(batch, input_names)])
            first = batch if done == 0 else first
            done += 1
    if done == 0:
        raise CalibrationError("the calibration loader gave no batch: pass at least one.")
    return done, first


def model_inputs(batch: Any, input_names: list[str]) -> list[Tensor]:
    """The tensors of a batch that the model takes, in the order of its arguments."""
    if isinstance(batch, Mapping):
        missing = [name for name in input_names if name not in batch]
        if missing:
            raise CalibrationError(
                f"the batch has keys {sorted(batch)}, the model also needs {missing}."
            )
        found = [batch[name] for name in input_names]
    elif isinstance(batch, Tensor):
        found = [batch]
    elif isinstance(batch, (tuple, list)):
        found = list(batch[: len(input_names)])
    else:
        raise CalibrationError(
            f"a batch must be a tensor, a tuple or a dict of tensors, got {type(batch).__name__}."
        )
    if len(found) != len(input_names):
        raise CalibrationError(
            f"the model takes {len(input_names)} inputs ({', '.join(input_names)}), "
            f"the batch holds {len(found)}."
        )
    for name, x in zip(input_names, found, strict=True):
        if not isinstance(x, Tensor):
            raise CalibrationError(
                f"input {name!r} must be a tensor, got {type(x).__name__}; "
                "convert it in the loader."
            )
    return found


def output_tensors(outputs: Any) -> list[Tensor]:
    """The tensors with values anywhere in what a model returned: tuples, dicts, nested."""
    return [t for t in pytree.tree_leaves(outputs) if isinstance(t, Tensor) and t.numel()]
