"""`reach` on the shipped networks: what brings a quantized network back, and at which price.

    python benchmarks/reach.py                     all cases, some minutes each on two idle cores
    python benchmarks/reach.py resnet --drop 0.5   one of them, with another target
    python benchmarks/reach.py --table             one line a case, without the logs

resnet: weights of 4 bits, activations of 8. mobilenet: one scale for each tensor at 8 bits.
collapsed: the same on a MobileNet whose channels were rescaled at random (it computes the same in
FP32, and next to nothing at 8 bits). efficientnet, vit, detector, encoder: 8 bits as they come.
The detector is scored by mAP, over draws of the pictures or (detector-coco) by pycocotools, one
number for all; the encoder by the share of sentences whose paraphrase is nearest.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptq_classroom import load_model, load_split, loader
from ptq_classroom.pictures import coco
from ptq_classroom.pictures.average_precision import match
from ptq_classroom.pictures.boxes import detections
from ptq_classroom.pictures.detection import load_scenes
from ptq_classroom.pictures.detector import load_detector
from ptq_classroom.text.evaluate import embed, found
from ptq_classroom.text.phrases import load_phrases, tokens
from ptq_classroom.text.weights import load_encoder
from ptq_course import QConfig, reach, top1_on
from ptq_course.deploy.onnx import export, session
from ptq_course.diagnosis.reach import Reached
from ptq_course.diagnosis.scores import OfSet, score
from ptq_course.grids.metrics import snr_pooled
from ptq_course.tables import text_table

PER_TENSOR = QConfig(weight_granularity="per_tensor")
COLUMNS = (
    "case", "FP32", "plain", "reached", "on the rest", "tried", "kB", "FP32 kB", "s", "CPU s",
    "the file", "the simulation",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A network with its calibration data, its metric, and batches to compare its file on."""

    model: nn.Module
    config: QConfig
    calibration: list[Any]
    evaluate: Callable[[nn.Module], Any]
    some: list[Tensor]
    free: tuple[int, ...] = (0,)  # dimensions that the file leaves open


def pictures(model: nn.Module, config: QConfig, options: argparse.Namespace) -> Case:
    """Top-1 on the pictures of the course."""
    batches = list(loader(load_split("calibration"), limit=options.calibration))
    test = list(loader(load_split("test"), batch_size=250, limit=options.examples))
    return Case(model, config, batches, top1_on(test), [x for x, _ in test[:4]])


def detector(options: argparse.Namespace, by_coco: bool = False) -> Case:
    """mAP at an overlap of 0.5 on the scenes of chapter 10: by pycocotools, or with an interval."""
    scenes = load_scenes("scenes_test")[: options.examples]
    x = scenes.inputs()
    batches = list(load_scenes("scenes_calibration").inputs().split(25))

    def mean_average_precision(model: nn.Module) -> float | OfSet:
        found = detections(torch.cat([model(part) for part in x.split(50)]))
        if by_coco:
            return coco.mean_average_precision(found, scenes)[0]
        matches = match(found, scenes, (0.5,))
        return OfSet(len(scenes), lambda counts: matches.mean(counts.double().numpy())[:, 0])

    return Case(load_detector(), QConfig(), batches, mean_average_precision, list(x.split(50)))


def encoder(options: argparse.Namespace) -> Case:
    """Whether the paraphrase is the nearest of all second sentences, as in chapter 12."""
    model, phrases = load_encoder(), load_phrases("test")
    batches = tokens(load_phrases("calibration").sentences)

    def nearest(version: nn.Module) -> Tensor:
        return found(embed(version, phrases))

    return Case(model, QConfig(), batches, nearest, tokens(phrases.sentences), (0, 1))


CASES: dict[str, Callable[[argparse.Namespace], Case]] = {
    "resnet": lambda o: pictures(load_model("resnet"), QConfig(weight_bits=4), o),
    "mobilenet": lambda o: pictures(load_model("mobilenet"), PER_TENSOR, o),
    "collapsed": lambda o: pictures(collapsed(), PER_TENSOR, o),
    "efficientnet": lambda o: pictures(load_model("efficientnet"), QConfig(), o),
    "vit": lambda o: pictures(load_model("vit"), QConfig(), o),
    "detector": detector,
    "detector-coco": lambda o: detector(o, by_coco=True),
    "encoder": encoder,
}


def collapsed() -> nn.Module:
    """MobileNet, rescaled."""
    from ptq_course.improve.equalization import unequalize
    from ptq_course.improve.pairs import with_limits

    return unequalize(with_limits(load_model("mobilenet")))


class File(nn.Module):
    """A session in place of a network."""

    def __init__(self, run: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.run(x))


def of_file(result: Reached, case: Case) -> tuple[str, str]:
    """The score of the exported file over all examples, and how near it is to the simulation."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "network.onnx"
        run = session(export(result.model, case.some[0], path, free_dimensions=case.free))
        ours = torch.cat([result.model(x) for x in case.some])
        file = torch.cat([torch.as_tensor(run(x)) for x in case.some])
        there = score(case.evaluate, File(run), "the file").mean
        here = score(case.evaluate, result.model, "the simulation").mean
    return f"{100 * there:.1f}", f"{100 * here:.1f}, {snr_pooled(ours, file):.0f} dB"


def row(
    name: str, case: Case, result: Reached, seconds: float, processor: float
) -> tuple[str, ...]:
    """A line of the table; ``processor``: seconds of it, which do not depend on who else runs."""
    log = result.log
    first, last = log[0].change, result.test
    return (
        name, f"{100 * log.reference.change.score:.1f}", f"{100 * first.score:.1f}",
        f"{'yes' if result.reached else 'no':3} {100 * result.validation.score:.1f}",
        str(last or "-").replace(" points", ""), str(len(log)), f"{log.best.bytes / 1000:.0f}",
        f"{log.reference.bytes / 1000:.0f}", f"{seconds:.0f}", f"{processor:.0f}",
        *of_file(result, case),
    )  # fmt: skip


def main() -> None:
    """Print the log of each case, and a table of all."""
    parser = argparse.ArgumentParser(description="reach on the shipped networks")
    parser.add_argument("cases", nargs="*", help="some of: " + ", ".join(CASES))
    parser.add_argument("--drop", type=float, default=1.5, help="points")
    parser.add_argument("--examples", type=int, default=4000, help="of the test split, at most")
    parser.add_argument("--calibration", type=int, default=512)
    parser.add_argument("--weight-bits", type=int, help="in place of the case's")
    parser.add_argument("--learn", type=int, default=0, help="steps of reconstruction, minutes")
    parser.add_argument("--table", action="store_true", help="no logs")
    options = parser.parse_args()
    unknown = set(options.cases) - set(CASES)
    if unknown:
        parser.error(f"no case {', '.join(sorted(unknown))}: {', '.join(CASES)}")
    rows = []
    for name in options.cases or CASES:
        case = CASES[name](options)
        config = case.config
        if options.weight_bits:
            config = replace(config, weight_bits=options.weight_bits)
        start, processor = time.perf_counter(), time.process_time()
        result = reach(
            case.model, case.calibration, case.evaluate, options.drop, config=config,
            learn=options.learn, progress=False,
        )  # fmt: skip
        seconds, processor = time.perf_counter() - start, time.process_time() - processor
        if not options.table:
            print(f"{name}, {seconds:.0f} s\n{result}\n", flush=True)
        rows.append(row(name, case, result, seconds, processor))
    print(text_table(COLUMNS, rows))


if __name__ == "__main__":
    main()
