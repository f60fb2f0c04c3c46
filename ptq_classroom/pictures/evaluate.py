"""Run a network, or a deployed session, over pictures."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ptq_classroom.pictures.camera import to_input


def logits(
    model: nn.Module | Callable,
    images: object,
    batch_size: int = 250,
    progress: bool = False,
) -> Tensor:
    """Logits float32 [N, classes] of `model` for a `Split` or pictures uint8 [N, 3, 48, 48].

    `model` is a module (evaluated in eval mode, which is restored) or any callable that takes
    float32 inputs [n, 3, 48, 48] and gives a tensor or an array, such as
    `ptq_course.deploy.onnx.session(...)`.
    """
    pictures: Tensor = getattr(images, "images", images)
    if not isinstance(pictures, Tensor) or pictures.dim() != 4 or len(pictures) == 0:
        raise ValueError(
            "logits wants a split or a non-empty uint8 tensor [N, 3, 48, 48] of pictures"
        )
    training = isinstance(model, nn.Module) and model.training
    if training:
        model.eval()
    outputs = []
    try:
        with torch.inference_mode():
            starts = range(0, len(pictures), batch_size)
            for start in tqdm(starts, disable=not progress, desc="pictures", leave=False):
                output = model(to_input(pictures[start : start + batch_size]))
                output = torch.from_numpy(output) if isinstance(output, np.ndarray) else output
                outputs.append(output.float().clone())
    finally:
        if training:
            model.train()
    return torch.cat(outputs)


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    """Share in [0, 1] of rows of `outputs` [N, classes] whose largest entry is at `labels` [N]."""
    if len(outputs) != len(labels) or len(labels) == 0:
        raise ValueError(f"accuracy got {len(outputs)} outputs for {len(labels)} labels")
    return (outputs.argmax(1) == labels).double().mean().item()
