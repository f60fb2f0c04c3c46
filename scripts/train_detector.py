"""Train the detector of chapter 10 on freshly drawn scenes; resumable.

    python scripts/train_detector.py        # about a quarter of an hour on one core

Writes data/detector.safetensors and its entry in data/manifest.json. Interrupted, the same command
continues from the last chunk, as scripts/train.py does, whose optimizer it shares. An object is
learned by the cell of its centre and the two cells nearest to it (as in YOLOv5, Jocher and others,
2020); boxes by generalized intersection over union (Rezatofighi and others, 2019).
"""

import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm
from train import ROOT, checkpoint, learning_rate, restore

from ptq_classroom.kit import learner_file
from ptq_classroom.pictures.average_precision import mean_average_precision
from ptq_classroom.pictures.boxes import areas, corners, detections, iou
from ptq_classroom.pictures.detection import DETECTED, SCENE_SIZE, SceneGenerator, Scenes
from ptq_classroom.pictures.detector import CELLS, STRIDE, Detector
from ptq_classroom.pictures.integrity import record
from ptq_classroom.pictures.models import multiply_adds

CHUNK = 1024  # scenes drawn; each is learned from twice, as it is and mirrored
SEED = 3_000_000  # of the first chunk; those of the shipped scenes are far away


def mirrored(scenes: Scenes) -> Scenes:
    """The same scenes, left and right exchanged."""
    left, top, right, bottom = scenes.boxes.unbind(1)
    boxes = torch.stack([SCENE_SIZE - right, top, SCENE_SIZE - left, bottom], 1)
    return Scenes(scenes.images.flip(3), boxes, scenes.labels, scenes.scene)


def targets(scenes: Scenes) -> tuple[Tensor, Tensor]:
    """Which object each cell learns: int64 [N, 144], -1 for none. And which cells are centres."""
    middle = (scenes.boxes[:, :2] + scenes.boxes[:, 2:]) / 2 / STRIDE
    cell = middle.floor().long().clamp(0, CELLS - 1)
    beside = cell + torch.where(middle - cell < 0.5, -1, 1)
    rows = torch.arange(len(cell))
    object_of = torch.full((len(scenes), CELLS, CELLS), -1)
    for x, y in ((beside[:, 0], cell[:, 1]), (cell[:, 0], beside[:, 1])):
        inside = (x >= 0) & (x < CELLS) & (y >= 0) & (y < CELLS)
        object_of[scenes.scene[inside], y[inside], x[inside]] = rows[inside]
    object_of[scenes.scene, cell[:, 1], cell[:, 0]] = rows  # a centre is nobody's neighbour
    return object_of.flatten(1), cell


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU less the share of the hull that belongs to neither box, [...] in [-1, 1]."""
    hull = torch.cat([torch.minimum(a[:, :2], b[:, :2]), torch.maximum(a[:, 2:], b[:, 2:])], 1)
    overlap = iou(a, b)
    union = (areas(a) + areas(b)) / (1 + overlap)
    return overlap - 1 + union / areas(hull).clamp(min=1e-9)


def loss_of(model: Detector, scenes: Scenes) -> Tensor:
    """Boxes, objects and classes, over the number of cells that learn an object."""
    raw = model.raw(scenes.inputs().contiguous(memory_format=torch.channels_last))
    logits = raw.flatten(2).transpose(1, 2)
    object_of, _ = targets(scenes)
    positive = object_of >= 0
    which = object_of[positive]
    boxes = corners(model.decode(raw)[positive])
    overlap = generalized_iou(boxes, scenes.boxes[which])
    wanted = torch.zeros_like(logits[..., 4])
    wanted[positive] = iou(boxes, scenes.boxes[which]).detach()
    found = functional.binary_cross_entropy_with_logits(logits[..., 4], wanted, reduction="sum")
    classes = functional.one_hot(scenes.labels[which], len(DETECTED)).float()
    named = functional.binary_cross_entropy_with_logits(
        logits[positive][:, 5:], classes, reduction="sum"
    )
    return (5 * (1 - overlap).sum() + found + named) / max(1, len(which))


def train(arguments: argparse.Namespace) -> tuple[Detector, float]:
    """The trained detector in eval mode and the minutes it took."""
    torch.manual_seed(arguments.seed)
    model = Detector()
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        model.head.bias[4:] = -3.0  # most cells are empty, most classes absent
    optimizer = torch.optim.SGD(
        [
            {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 1e-4},
            {"params": [p for p in model.parameters() if p.dim() == 1]},
        ],
        lr=arguments.lr,
        momentum=0.9,
        nesterov=True,
    )
    chunks = -(-arguments.scenes // CHUNK)
    steps = CHUNK // arguments.batch * 2
    settings = {k: v for k, v in vars(arguments).items() if k not in ("fresh", "output", "work")}
    folder = arguments.work / "detector"
    learner_file.remove_leftovers(folder)
    if arguments.fresh:
        for state in folder.glob("state-*.safetensors"):
            state.unlink()
    done, minutes = restore(folder, settings, model, optimizer)
    model.train()
    bar = tqdm(range(done, chunks), initial=done, total=chunks, desc="detector", unit="chunk")
    for chunk in bar:
        start = time.perf_counter()
        drawn, _ = SceneGenerator(SEED + arguments.seed * 10_000 + chunk).draw(CHUNK)
        total = 0.0
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(chunk * steps + step, chunks * steps, arguments.lr)
            first = step % (steps // 2) * arguments.batch
            part = drawn[first : first + arguments.batch]
            loss = loss_of(model, part if step < steps // 2 else mirrored(part))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            total += loss.item()
        minutes += (time.perf_counter() - start) / 60
        bar.set_postfix(loss=f"{total / steps:.3f}")
        checkpoint(folder, settings, chunk + 1, minutes, model, optimizer)
    return model.to(memory_format=torch.contiguous_format).eval(), minutes


def outputs(model: nn.Module, scenes: Scenes) -> Tensor:
    """The detector's output for all scenes, [N, 144, 5 + classes]."""
    with torch.inference_mode():
        return torch.cat([model(part) for part in scenes.inputs().split(100)]).clone()


def arguments_of_a_run() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--scenes", type=int, default=80 * CHUNK, help="scenes to learn from")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="ignore an interrupted run")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "training", help="folder of checkpoints"
    )
    parser.add_argument("--output", type=Path, help="write here and leave data/ alone (a trial)")
    return parser


def main() -> None:
    """Train, save, measure, enter in the manifest."""
    arguments = arguments_of_a_run().parse_args()
    model, minutes = train(arguments)
    output = arguments.output or ROOT / "data" / "detector.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, output)
    output.chmod(0o644)  # safetensors makes files that only their owner may read
    print(f"{output.name}: {arguments.scenes} scenes, {minutes:.1f} minutes")
    if arguments.output:
        fresh, _ = SceneGenerator(SEED - 1).draw(400)
        print("mAP at 0.5 and at 0.5 to 0.95 on fresh scenes: {:.4f} {:.4f}".format(
            *mean_average_precision(detections(outputs(model, fresh)), fresh)
        ))  # fmt: skip
        return
    from ptq_classroom.pictures.detection import load_scenes

    scenes = load_scenes("scenes_test")
    at_half, mean = mean_average_precision(detections(outputs(model, scenes)), scenes)
    given = [
        f" --{name} {getattr(arguments, name)}"
        for name in ("scenes", "batch", "lr", "seed")
        if getattr(arguments, name) != arguments_of_a_run().get_default(name)
    ]
    record(
        output.name,
        licence="MIT",
        map50=round(at_half, 4),
        map=round(mean, 4),
        multiply_adds=multiply_adds(model, SCENE_SIZE),
        seed=arguments.seed,
        scenes=-(-arguments.scenes // CHUNK) * CHUNK,
        minutes=round(minutes, 1),
        torch=torch.__version__.split("+")[0],
        command=f"python scripts/train_detector.py{''.join(given)}",
    )
    print(f"mAP on the test scenes: {at_half:.3f} at 0.5, {mean:.3f} at 0.5 to 0.95")


if __name__ == "__main__":
    main()
