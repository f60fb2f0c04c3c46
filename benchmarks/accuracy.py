"""Accuracy on the shipped networks, ours beside other tools: the same pictures for all.

    python benchmarks/accuracy.py                       W8A8, W4A8 and W4A4 of every network
    python benchmarks/accuracy.py resnet --bits W4A8    a part of it

Each row: top-1 on the test pictures, the signal-to-noise ratio of the logits (pooled, and the
median of a picture), seconds from the FP32 network to the quantized one, the bytes of the ONNX file
where one can be written, and of the network packed as a checkpoint. Ours are simulated (which
`deploy.validate` compares with their files), and so are torchao, Model Optimizer and AIMET; ONNX
Runtime's `quantize_static` and NNCF run in ONNX Runtime. `peers.py` says how to have the tools that
are not installed with the course; without them their rows are left out. Whoever wins
is printed.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from pathlib import Path

import torch
from peers import Way, peers
from torch import Tensor, nn
from torch.nn import functional

from ptq_classroom import load_split, loader
from ptq_classroom.pictures.evaluate import accuracy, logits
from ptq_classroom.pictures.models import ARCHITECTURES, load_model
from ptq_course.deploy import onnx as deploy
from ptq_course.deploy.session import Session
from ptq_course.diagnosis.sizes import model_bytes
from ptq_course.errors import QuantizationError
from ptq_course.grids.metrics import snr_median, snr_pooled
from ptq_course.improve.adaround import AdaRound
from ptq_course.improve.bias_correction import CorrectBias
from ptq_course.improve.equalization import Equalize
from ptq_course.improve.gptq import GPTQ
from ptq_course.improve.reconstruction import reconstruct
from ptq_course.improve.walk import improved
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer

COPIES, SHIFT = 8, 3  # of each calibration picture, moved by so many pixels at most
STEPS = 1200  # of reconstruction: with AdaRound before it, about two minutes
BITS = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4)}
Made = nn.Module | Session


def varied(batches: list, copies: int = COPIES) -> list[Tensor]:
    """The calibration pictures, and mirrored and shifted copies of them, in batches."""
    generator = torch.Generator().manual_seed(1)
    pictures = torch.cat([x for x, _ in batches])
    rows, columns = pictures.shape[2:]
    found = [pictures]
    for _ in range(copies - 1):
        mirrored = torch.rand(len(pictures), generator=generator) < 0.5
        turned = torch.where(mirrored[:, None, None, None], pictures.flip(-1), pictures)
        wide = functional.pad(turned, (SHIFT,) * 4, mode="replicate")
        down, right = torch.randint(0, 2 * SHIFT + 1, (2, len(pictures)), generator=generator)
        places = zip(wide, down.tolist(), right.tolist(), strict=True)
        found.append(torch.stack([x[:, d : d + rows, r : r + columns] for x, d, r in places]))
    return list(torch.cat(found).split(500))


def ways(model: nn.Module, batches: list, name: str, folder: Path) -> dict[str, Way]:
    """Each contestant's way to a quantized network."""
    weights, activations = BITS[name]
    few = weights < 8
    config = QConfig(
        weight_bits=weights,
        activation_bits=activations,
        weight_range="mse" if few else "minmax",
        weight_narrow=not few,  # of 256 codes one is not missed, of 16 it is
    )

    def calibrated(rule: str | None = None, steps: tuple = ()) -> PTQQuantizer:
        made = PTQQuantizer(model, config=config, steps=steps)
        return made.calibrate(batches, ranges=rule, progress=False)

    def walk(*layers, steps: tuple = ()) -> nn.Module:
        return improved(calibrated(steps=steps), batches, layers, progress=False)

    found: dict[str, Way] = {
        "ours, min-max": lambda: calibrated("minmax").convert(),
        "ours, searched": lambda: calibrated().convert(),
        "ours, + bias correction": lambda: walk(CorrectBias()),
        "ours, equalized, + bias": lambda: walk(CorrectBias(), steps=(Equalize(),)),
    }
    if few:
        found["ours, GPTQ + bias"] = lambda: walk(GPTQ(), CorrectBias())
    found["ours, AdaRound + bias"] = lambda: walk(AdaRound(), CorrectBias())
    found["ours, equalized, AdaRound + bias"] = lambda: walk(
        AdaRound(), CorrectBias(), steps=(Equalize(),)
    )

    def learned() -> nn.Module:
        quantizer = calibrated(steps=(Equalize(),))
        start = improved(quantizer, batches, [AdaRound(), CorrectBias()], progress=False)
        return reconstruct(quantizer, varied(batches), STEPS, start=start, progress=False)

    found["ours, AdaRound, then learned"] = learned
    fp32 = deploy.export(model, batches[0][0][:2], folder / "fp32.onnx")
    found |= peers(model, batches, weights, activations, fp32, folder)
    return found


def sizes(made: Made, example: Tensor, folder: Path) -> tuple[str, str]:
    """Bytes of the ONNX file and of the network packed; "-" where there is none."""
    if isinstance(made, Session):
        return f"{made.size:,}", "-"
    if not hasattr(made, "quantized_layers"):
        return "-", "-"
    try:
        path = deploy.export(made, example, folder / "ours.onnx", four_bit_convolutions=True)
        file = f"{path.stat().st_size:,}"
    except QuantizationError:  # no runtime has kernels for these bits
        file = "-"
    return file, f"{model_bytes(made):,}"


def table(network: str, options: argparse.Namespace, folder: Path) -> None:
    """Print the rows of one network."""
    test = load_split("test")[: options.pictures]
    batches = loader(load_split("calibration")[: options.calibration])
    model = load_model(network)
    reference = logits(model, test)
    print(
        f"{network}: FP32 top-1 {accuracy(reference, test.labels):.1%} on {len(test)} pictures, "
        f"{options.calibration} for calibration"
    )
    print(f"{'':<40}{'top-1':>7}{'pooled':>10}{'median':>10}{'time':>10}{'ONNX':>11}{'packed':>11}")
    for name in options.bits:
        for way, make in ways(model, batches, name, folder).items():
            if options.only and not any(word in way for word in options.only):
                continue
            start = time.perf_counter()
            try:
                made = make()
            except Exception as error:  # another tool may raise anything
                print(f"{name}  {way:<34}refused: {str(error).splitlines()[0][:90]}")
                continue
            seconds = time.perf_counter() - start
            outputs = logits(made, test)
            file, packed = sizes(made, batches[0][0][:2], folder)
            print(
                f"{name}  {way:<34}{accuracy(outputs, test.labels):7.1%}"
                f"{snr_pooled(reference, outputs):7.1f} dB{snr_median(reference, outputs):7.1f} dB"
                f"{seconds:8.1f} s{file:>11}{packed:>11}",
                flush=True,
            )
    print()


def main() -> None:
    """Print a table for each network."""
    parser = argparse.ArgumentParser(description="accuracy, ours beside other tools")
    parser.add_argument("networks", nargs="*", help="some of: " + ", ".join(ARCHITECTURES))
    parser.add_argument("--bits", nargs="+", choices=list(BITS), default=list(BITS))
    parser.add_argument("--pictures", type=int, default=1000, help="of the test split")
    parser.add_argument("--calibration", type=int, default=512)
    parser.add_argument("--only", nargs="*", help="rows whose names contain one of these")
    options = parser.parse_args()
    unknown = set(options.networks) - set(ARCHITECTURES)
    if unknown:
        parser.error(f"no network {', '.join(sorted(unknown))}: {', '.join(ARCHITECTURES)}")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        for network in options.networks or ARCHITECTURES:
            table(network, options, Path(folder))


if __name__ == "__main__":
    main()
