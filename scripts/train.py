"""Train one of the course's networks on freshly drawn pictures; resumable.

    python scripts/train.py --arch resnet       # about a quarter of an hour on two cores
    python scripts/train.py --arch mobilenet
    python scripts/train.py --arch efficientnet
    python scripts/train.py --arch vit          # three times the pictures
    python scripts/train.py --arch resnet20

Writes data/<arch>.safetensors and its entry in data/manifest.json. Interrupted, the same command
continues from the last chunk (checkpoints in training/, no pickles). Batch norm uses batch
statistics at first and frozen ones in the last part. One-cycle learning rate (Smith and Topin,
"Super-Convergence", 2019), SGD with Nesterov momentum (the transformer: AdamW), label smoothing.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save, save_file
from torch import nn
from tqdm.auto import tqdm

from ptq_classroom.kit import learner_file
from ptq_classroom.pictures.camera import to_input
from ptq_classroom.pictures.classes import CLASS_NAMES
from ptq_classroom.pictures.evaluate import accuracy, logits
from ptq_classroom.pictures.generator import EmojiGenerator
from ptq_classroom.pictures.integrity import record
from ptq_classroom.pictures.models import ARCHITECTURES, multiply_adds

ROOT = Path(__file__).resolve().parents[1]
# Share of the training after which batch norm is frozen. At 60 %, with the learning rate still
# high, the depthwise network diverges.
FREEZE = {"resnet": 0.6, "mobilenet": 0.85, "efficientnet": 0.85, "vit": 1.0, "resnet20": 0.6}
IMAGES = {"vit": 900_000}  # the others learn from 300,000
RATE = {"vit": 0.002}  # of AdamW; the others learn with SGD
CHUNK = 8192  # pictures drawn, learned from and thrown away


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """What the optimizer remembers of each parameter, as flat tensors for safetensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{number}.{key}": value
        for number, remembered in state.items()
        for key, value in remembered.items()
    }


def restore(
    folder: Path, settings: dict, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    """(chunks done, minutes spent) of an interrupted run with the same settings, else (0, 0).

    Of the two states that are kept the later one, unless it is damaged.
    """
    states = [state for file in folder.glob("state-*.safetensors") if (state := read_state(file))]
    if not states:
        return 0, 0.0
    progress, tensors = max(states, key=lambda state: state[0]["chunks"])
    if progress["settings"] != settings:
        raise SystemExit(f"{folder} holds a run with other settings; remove it or use --fresh")
    remembered: dict[int, dict[str, torch.Tensor]] = {}
    for name in [name for name in tensors if name.startswith("optimizer.")]:
        _, number, key = name.split(".")
        remembered.setdefault(int(number), {})[key] = tensors.pop(name)
    model.load_state_dict(tensors)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": remembered})
    return progress["chunks"], progress["minutes"]


def read_state(file: Path) -> tuple[dict, dict[str, torch.Tensor]] | None:
    """(how far the run was, its tensors), or None where the file is cut short or damaged."""
    try:
        data = file.read_bytes()
        size = int.from_bytes(data[:8], "little")
        progress = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["progress"])
        return progress, load(data)
    except (OSError, ValueError, KeyError, SafetensorError):
        print(f"{file} is damaged: going on from the state before it, where there is one")
        return None


def checkpoint(
    folder: Path,
    settings: dict,
    chunks: int,
    minutes: float,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Save the run; an interruption at any moment leaves the old state, or the old and the new."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")  # checkpoints never enter the repository
    tensors = {**model.state_dict(), **optimizer_tensors(optimizer)}
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    progress = {"settings": settings, "chunks": chunks, "minutes": minutes}
    data = save(tensors, {"progress": json.dumps(progress)})
    learner_file.write(folder / f"state-{chunks % 2}.safetensors", data)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """One cycle: up in a straight line over the first fifth, then half a cosine down to zero."""
    rise = max(1, steps // 5)
    if step < rise:
        return peak * (0.04 + 0.96 * step / rise)
    fall = torch.tensor((step - rise) / max(1, steps - rise) * torch.pi)
    return peak * 0.5 * (1 + fall.cos().item())


def estimate_batch_norm(model: nn.Module, images: torch.Tensor, batch: int) -> None:
    """Set running means and variances to their averages over `images`; weights stay as they are."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
    model.train()
    with torch.no_grad():
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            model(to_input(part).contiguous(memory_format=torch.channels_last))


def optimizer_for(
    arguments: argparse.Namespace, decayed: list[nn.Parameter], plain: list[nn.Parameter]
) -> torch.optim.Optimizer:
    """SGD with momentum; AdamW for a transformer, which SGD hardly trains."""
    if arguments.arch in RATE:
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=arguments.lr)
    groups = [{"params": decayed, "weight_decay": arguments.weight_decay}, {"params": plain}]
    return torch.optim.SGD(groups, lr=arguments.lr, momentum=0.9, nesterov=True)


def train(arguments: argparse.Namespace) -> tuple[nn.Module, float]:
    """The trained network in eval mode and the minutes it took."""
    torch.manual_seed(arguments.seed)
    model = ARCHITECTURES[arguments.arch](len(CLASS_NAMES)).to(memory_format=torch.channels_last)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    optimizer = optimizer_for(arguments, decayed, plain)
    chunk_steps = CHUNK // arguments.batch
    chunks = -(-arguments.images // CHUNK)
    settings = {k: v for k, v in vars(arguments).items() if k not in ("fresh", "output", "work")}
    folder = arguments.work / arguments.arch
    learner_file.remove_leftovers(folder)
    if arguments.fresh:
        for state in folder.glob("state-*.safetensors"):
            state.unlink()
    done, minutes = restore(folder, settings, model, optimizer)
    freeze = round(chunks * arguments.freeze)
    criterion = nn.CrossEntropyLoss(label_smoothing=arguments.smoothing)
    bar = tqdm(range(done, chunks), initial=done, total=chunks, desc=arguments.arch, unit="chunk")
    for chunk in bar:
        start = time.perf_counter()
        images, labels = EmojiGenerator(seed=1_000_000 + arguments.seed * 10_000 + chunk).batch(
            CHUNK
        )
        if chunk == freeze:
            estimate_batch_norm(model, images, arguments.batch)
        # A few flash pictures decide a batch's variance, so that a network trained to the end on
        # batch statistics loses points in eval mode; the last part is trained in eval mode.
        model.train(chunk < freeze)
        hits = total = 0.0
        for step in range(chunk_steps):
            rate = learning_rate(chunk * chunk_steps + step, chunks * chunk_steps, arguments.lr)
            for group in optimizer.param_groups:
                group["lr"] = rate
            part = slice(step * arguments.batch, (step + 1) * arguments.batch)
            inputs = to_input(images[part]).contiguous(memory_format=torch.channels_last)
            outputs = model(inputs)
            loss = criterion(outputs, labels[part])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            hits += (outputs.argmax(1) == labels[part]).sum().item()
            total += loss.item()
        minutes += (time.perf_counter() - start) / 60
        bar.set_postfix(loss=f"{total / chunk_steps:.3f}", accuracy=f"{hits / CHUNK:.3f}")
        checkpoint(folder, settings, chunk + 1, minutes, model, optimizer)
    return model.to(memory_format=torch.contiguous_format).eval(), minutes


def arguments_of_a_run() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--arch", choices=sorted(ARCHITECTURES), required=True)
    parser.add_argument("--images", type=int, help="pictures to learn from")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, help="peak of the learning rate")
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    parser.add_argument("--smoothing", type=float, default=0.05)
    parser.add_argument("--freeze", type=float, help="share with batch statistics")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="ignore an interrupted run")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "training", help="folder of checkpoints"
    )
    parser.add_argument("--output", type=Path, help="write here and leave data/ alone (a trial)")
    return parser


def command(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> str:
    """The command that gives these weights again: what differs from the defaults, and --arch."""
    words = ["python scripts/train.py"]
    for name, value in vars(arguments).items():
        if name not in ("work", "output", "fresh") and value != parser.get_default(name):
            words.append(f"--{name.replace('_', '-')} {value}")
    return " ".join(words)


def main() -> None:
    """Train, save, measure, enter in the manifest."""
    parser = arguments_of_a_run()
    arguments = parser.parse_args()
    said = command(parser, arguments)
    if arguments.freeze is None:
        arguments.freeze = FREEZE[arguments.arch]
    if arguments.images is None:
        arguments.images = IMAGES.get(arguments.arch, 300_000)
    if arguments.lr is None:
        arguments.lr = RATE.get(arguments.arch, 0.2)
    model, minutes = train(arguments)
    output = arguments.output or ROOT / "data" / f"{arguments.arch}.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, output)
    output.chmod(0o644)  # safetensors makes files that only their owner may read
    print(f"{output.name}: {arguments.images} pictures, {minutes:.1f} minutes")
    if arguments.output:
        return
    from ptq_classroom.pictures.datasets import load_split

    split = load_split("test")
    outputs = logits(model, split)
    top1 = accuracy(outputs, split.labels)
    by_mode = {
        mode: round(accuracy(outputs[split.modes == mode], split.labels[split.modes == mode]), 4)
        for mode in sorted(set(split.modes.tolist()))
    }
    record(
        output.name,
        licence="MIT",
        fp32_accuracy=round(top1, 5),
        fp32_accuracy_by_mode=by_mode,
        multiply_adds=multiply_adds(model),
        seed=arguments.seed,
        pictures=-(-arguments.images // CHUNK) * CHUNK,
        minutes=round(minutes, 1),
        torch=torch.__version__.split("+")[0],
        command=said,
    )
    print(f"FP32 accuracy on the test split: {100 * top1:.2f} %")


if __name__ == "__main__":
    main()
