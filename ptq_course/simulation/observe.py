"""Observation: run calibration data through a traced model and collect statistics of its values.

The second of the five steps (chapter 06). Nothing is decided here: a summary per tensor value comes
out, and any range rule can read it later without a second pass over the data.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from tqdm.auto import tqdm

from ptq_course.errors import CalibrationError, QuantizationError, whole
from ptq_course.grids.metrics import Noise
from ptq_course.ranges.summaries import Summary, checked_values

SAMPLE = 1024  # examples kept to search a range rule with,
SAMPLE_BYTES = 2**28  # and their size: memory stays flat
LABELS = ("labels", "label", "target", "y")  # keys under which a batch may hold its labels


class Sample:
    """Inputs of every 2^k-th batch that came: SAMPLE examples, SAMPLE_BYTES at most (or one)."""

    def __init__(self) -> None:
        self.batches: list[list[Tensor]] = []
        self.step, self.seen = 1, 0

    def add(self, inputs: Sequence[Tensor]) -> None:
        if self.seen % self.step == 0:
            self.batches.append([x.clone() for x in inputs])
        self.seen += 1
        while len(self.batches) > 1 and self._is_full():
            self.batches, self.step = self.batches[::2], 2 * self.step

    def _is_full(self) -> bool:
        examples = sum(max((len(x) for x in b if x.dim()), default=1) for b in self.batches)
        return examples > SAMPLE or sum(x.nbytes for b in self.batches for x in b) > SAMPLE_BYTES

    def copy(self) -> Sample:
        """Another, with the same tensors, to be thrown away should an observation fail."""
        other = copy.copy(self)
        other.batches = list(self.batches)
        return other


class Observer(nn.Module):
    """Passes a tensor on unchanged and updates its summaries.

    integers: for an input of the network, the set that its name is added to where it holds integers
    (a mask, pixels as bytes), which have no scale; None elsewhere, where integers are an error.
    """

    def __init__(
        self, name: str, summaries: dict[type[Summary], Summary], integers: set[str] | None = None
    ) -> None:
        super().__init__()
        self.name = name
        self.summaries = summaries
        self.integers = integers

    def forward(self, x: Tensor) -> Tensor:
        if self.integers is not None and not (x.is_floating_point() or x.is_complex()):
            self.integers.add(self.name)
            return x
        if self.integers is None and x.numel() == 0:  # no token was routed here, no box found
            return x
        checked = checked_values(x, f"value {self.name!r}")
        for summary in self.summaries.values():
            summary.take(*checked)
        return x


def run(
    model: nn.Module,
    loader: Iterable,
    *,
    input_names: list[str],
    optional_names: Sequence[str] = (),
    num_batches: int | None = None,
    begin: Callable[[list[Tensor]], nn.Module],
    sample: Sample | None = None,
    progress: bool = True,
) -> int:
    """Forward ``loader``'s batches through ``model`` without gradients.

    A batch is a tensor, a tuple ``(x, y, ...)`` whose first entries are the model's inputs, or a
    dict from which the model's inputs are taken by name (labels are never needed). ``begin`` is
    called with the inputs of the first batch before anything runs, and gives the module to run on
    the device of ``model``; ``sample`` keeps some of the inputs. Returns how many batches it ran.
    Raises CalibrationError where none came or one does not fit.
    """
    if isinstance(loader, Tensor):
        raise CalibrationError(
            "the loader is a tensor, whose rows would be taken one by one; pass a list of batches, "
            "such as [x]."
        )
    if num_batches is not None:
        num_batches = whole("num_batches", num_batches, 1, error=CalibrationError)
    length = operator.length_hint(loader, -1)  # a loader of a stream has a len() that raises
    total = min((n for n in (length, num_batches) if n is not None and n >= 0), default=None)
    done = 0
    taken = islice(loader, num_batches)  # not one more, which an iterator could not give again
    batches = tqdm(taken, total=total, desc="calibrating", unit="batch", disable=not progress)
    with torch.no_grad():
        for batch in batches:
            inputs = placed(batch, input_names, model)
            if done == 0:
                _warn_of_options(batch, len(input_names), optional_names)
                running = begin(inputs)
            if sample is not None:
                sample.add(inputs)
            running(*inputs)
            done += 1
    if done == 0:
        raise CalibrationError("the calibration loader gave no batch: pass at least one.")
    return done


def placed(batch: Any, input_names: list[str], model: nn.Module) -> list[Tensor]:
    """The model's inputs from a batch, copied to its device: a model may work in place on them."""
    return _copied(model_inputs(batch, input_names), model)


def _copied(inputs: Sequence[Tensor], run: Any) -> list[Tensor]:
    parameters = run.parameters() if isinstance(run, nn.Module) else ()
    device = next((p.device for p in parameters), torch.device("cpu"))
    return [x.to(device, copy=True) for x in inputs]


def _warn_of_options(batch: Any, inputs: int, optional_names: Sequence[str]) -> None:
    """Say so where the batch seems to hold an argument that the network was traced without."""
    ignored: list[str] = []
    if isinstance(batch, Mapping):
        ignored = sorted(set(optional_names) & set(batch))
    elif isinstance(batch, (tuple, list)) and optional_names and len(batch) > inputs:
        extra = batch[inputs]  # labels are integers
        masks = isinstance(extra, Tensor) and (
            extra.is_floating_point() or extra.dtype == torch.bool
        )
        ignored = [optional_names[0]] if masks else []
    if ignored:
        warnings.warn(
            f"the batch also gives {ignored}, which the model takes as an option. Options keep "
            "their default here; wrap the model in one whose forward() needs them, if they matter.",
            stacklevel=4,
        )


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
        if input_names and input_names[-1].startswith("*"):  # *xs takes all that is left
            rest = len(batch) - len(input_names) + 1
            input_names = [*input_names[:-1], *[input_names[-1]] * rest]
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


def labels_of(batch: Any, inputs: int, examples: int) -> Tensor | None:
    """The labels of a batch: the integer tensor [examples] after its inputs, or None."""
    found = None
    if isinstance(batch, Mapping):
        found = next((batch[k] for k in LABELS if k in batch), None)
    elif isinstance(batch, (tuple, list)) and len(batch) > inputs:
        found = batch[inputs]
    if not isinstance(found, Tensor) or found.shape != (examples,):
        return None
    return None if found.is_floating_point() or found.is_complex() else found


def outputs_over(run: Callable, batches: Iterable[Sequence[Tensor]]) -> list[list[Tensor]]:
    """What ``run`` (a model, a session) gives for each batch of inputs: its tensors.

    No gradients; the inputs are copied to its device, because it may work in place on them.
    """
    with torch.no_grad():
        outputs = [pytree.tree_leaves(run(*_copied(inputs, run))) for inputs in batches]
    return [[t for t in leaves if isinstance(t, Tensor)] for leaves in outputs]


def output_noise(
    expected: list[list[Tensor]], found: list[list[Tensor]], noises: list[Noise]
) -> list[Noise]:
    """Add to ``noises``, one an output, what two lists from `outputs_over` differ by."""
    for references, tensors in zip(expected, found, strict=True):
        if len(references) != len(tensors):
            raise QuantizationError(
                f"quantized, the model returns {len(tensors)} tensors, in floating point "
                f"{len(references)}: rounding changed a branch, so they cannot be compared."
            )
        noises += [Noise() for _ in references[len(noises) :]]
        for noise, reference, tensor in zip(noises, references, tensors, strict=False):
            noise.add(reference, tensor)
    return noises


def output_tensors(outputs: Any) -> list[Tensor]:
    """The tensors with values anywhere in what a model returned: tuples, dicts, nested."""
    return [t for t in pytree.tree_leaves(outputs) if isinstance(t, Tensor) and t.numel()]
