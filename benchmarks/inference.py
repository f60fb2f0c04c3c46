"""What integers cost and win at inference: every figure is a ratio against a peer in the same run.

    python benchmarks/inference.py            about four minutes on two idle cores
    python benchmarks/inference.py --quick    fewer rounds, one thread: half a minute
    python benchmarks/inference.py --only resnet
    python benchmarks/inference.py --activations   part 4 alone: half a minute

Part 4 is `activations.py`: small networks around each activation, ours beside the file that ONNX
Runtime's own `quantize_static` makes.

Part 1, ONNX Runtime: the INT8 file against the FP32 file (folded and stripped) at 1 and 32 pictures
and one and two threads: as the session would run it, with its guard against saturating sums forced
on and off, and with 7-bit weights, which cannot saturate. Part 2, PyTorch: the fake-quantized
network and the integer-only one against FP32. Part 3: the INT8 matrix product of PyTorch and the
exact one of `ptq_course.integer` against the float32 product.

The contestants take turns. A ratio is the median over the turns of the peer's time over the
contestant's, in brackets the middle half of them: it is wide where other programs use the machine.
Above 1 is faster than the peer. The goals judge the INT8 file with 8-bit weights as `session` runs
it, which is what a learner deploys, and no better variant.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import activations
from bootstrap import processor

from ptq_classroom import load_model, load_split, loader
from ptq_course import PTQQuantizer, QConfig
from ptq_course.deploy import onnx as deploy
from ptq_course.deploy.session import Speedup, Timing, products_saturate, timings
from ptq_course.integer import int_matmul, int_mm_is_exact, to_integer

NETWORKS = ("resnet", "mobilenet", "efficientnet")
IN_PYTORCH = ("resnet", "mobilenet")  # simulated, and with integers only
BATCHES = (1, 32)
MATRICES = ((4608, 288, 32), (1152, 576, 64), (512, 512, 512))  # two convolutions and a cube
VERSION = "INT8, {}-bit weights"
JUDGED = VERSION.format(8)
GOALS = {"resnet": (2.0, 0.28), "efficientnet": (1.3, 0.30)}  # speed at 32 pictures, size of file
SIMULATION_BUDGET = {1: 2.0, 32: 1.5}  # times FP32 in PyTorch, by pictures, both networks


def show(title: str, seconds: Mapping[str, Timing], peer: str) -> dict[str, Speedup]:
    """Print one line a contestant and return the ratios."""
    found = {name: Speedup.of(seconds[peer], t) for name, t in seconds.items() if name != peer}
    print(f"\n{title}: times faster than {peer} ({seconds[peer].median * 1e3:.2f} ms)")
    for name, speed in found.items():
        print(f"  {name:<34} {speed}")
    return found


def quantized(network: str, bits: int = 8) -> torch.nn.Module:
    """The network with percentile ranges and weights of ``bits``."""
    quantizer = PTQQuantizer(
        load_model(network), config=replace(QConfig.onnxruntime(), weight_bits=bits)
    )
    batches = loader(load_split("calibration"))[:2]
    quantizer.observe(batches, ranges="percentile", progress=False)
    return quantizer.compute_qparams("percentile").convert()


def in_onnx_runtime(
    network: str, x: Tensor, folder: Path, threads: tuple[int, ...], rounds: int
) -> tuple[Speedup, float]:
    """Part 1; returns `JUDGED`'s speed at 32 pictures with most threads, and the file ratio."""
    paths = {"FP32": deploy.export(load_model(network), x, folder / f"{network}.onnx")}
    for bits in (8, 7):
        path = folder / f"{network}{bits}.onnx"
        paths[VERSION.format(bits)] = deploy.export(quantized(network, bits), x, path)
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    print(f"\n{network}: files " + ", ".join(f"{n} {s:,} bytes" for n, s in sizes.items()))
    size = sizes[JUDGED] / sizes["FP32"]
    print(f"  INT8 over FP32: {size:.3f}x")
    for count in threads:
        runs = {"FP32": deploy.session(paths["FP32"], count)}
        for name in list(paths)[1:]:
            runs[name] = deploy.session(paths[name], count)
            for guard, words in ((True, "guard on"), (False, "guard off")):
                runs[f"{name}, {words}"] = deploy.session(paths[name], count, exact=guard)
        for batch in BATCHES:
            seconds = timings(runs, x[:batch].clone(), rounds)
            title = f"{network}, {batch} pictures, {count} threads, ONNX Runtime"
            found = show(title, seconds, "FP32")
    print(f"  kernels: {runs[JUDGED].operators}")
    return found[JUDGED], size


def in_pytorch(network: str, x: Tensor, rounds: int) -> bool:
    """Part 2: simulation and integer path against FP32; True where a budget is missed.

    Each takes turns with FP32 alone: the integer path's large tensors would make the allocator hand
    memory back, and the other two pay for its return.
    """
    model = load_model(network)
    simulated = quantized(network)
    contestants = {"fake-quantized": simulated, "integer-only": to_integer(simulated)}
    missed = False
    with torch.no_grad():
        for batch in BATCHES:
            for name, contestant in contestants.items():
                runs: dict[str, Callable] = {"FP32": model, name: contestant}
                seconds = timings(runs, x[:batch].clone(), rounds)
                title = f"{network}, {batch} pictures, {torch.get_num_threads()} threads, PyTorch"
                show(title, seconds, "FP32")
                if contestant is simulated:
                    cost = Speedup.of(seconds[name], seconds["FP32"])
                    missed |= over_budget(network, batch, cost)
    return missed


def products(rounds: int) -> None:
    """Part 3: int8 matrix products against float32's."""
    trusted = "exact here" if int_mm_is_exact() else "WRONG here: its sums saturate"
    generator = torch.Generator().manual_seed(0)
    for m, k, n in MATRICES:
        a, b = (
            torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)
            for shape in ((m, k), (k, n))
        )
        fa, fb = a.float(), b.float()
        runs = {
            "float32 matmul": lambda _, fa=fa, fb=fb: fa @ fb,
            f"torch._int_mm ({trusted})": lambda _, a=a, b=b: torch._int_mm(a, b),
            "ptq_course.integer.int_matmul": lambda _, a=a, b=b: int_matmul(a, b),
        }
        title = f"[{m}, {k}] x [{k}, {n}]"
        show(title, timings(runs, torch.zeros(()), rounds), "float32 matmul")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; the exit code is 1 where a goal or a budget is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, one thread")
    parser.add_argument("--only", choices=NETWORKS, help="one network only")
    parser.add_argument("--activations", action="store_true", help="part 4 alone")
    options = parser.parse_args(arguments)
    if options.activations:
        return activations.main([])
    rounds, threads = (2, (1,)) if options.quick else (60, (1, 2))
    torch.set_num_threads(threads[-1])
    sums = "saturate: the session's guard is on" if products_saturate() else "are exact: no guard"
    print(f"torch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}; INT8 sums {sums}")
    print(f"on {processor.read().line()}")
    x = loader(load_split("test"))[0][0][: max(BATCHES)].clone()
    missed = False
    with tempfile.TemporaryDirectory() as folder:
        for network in [options.only] if options.only else NETWORKS:
            speed, size = in_onnx_runtime(network, x, Path(folder), threads, rounds)
            if network in IN_PYTORCH:
                missed |= in_pytorch(network, x, max(2, rounds // 6))
            if network in GOALS:
                missed |= judge(speed, size, threads[-1], network)
    products(rounds)
    if not (options.only or options.quick):
        missed |= bool(activations.main([]))
    return int(missed and not options.quick)


def over_budget(network: str, batch: int, cost: Speedup) -> bool:
    """Print the simulation's time over FP32's; True where it is more than its budget."""
    budget = SIMULATION_BUDGET[batch]
    word = "MISS" if cost.median > budget else "PASS"
    print(f"{word}  {network} simulation over FP32, {batch} pictures: {cost} (budget {budget}x)")
    return cost.median > budget


def judge(speed: Speedup, size: float, threads: int, network: str = "resnet") -> bool:
    """Print PASS or MISS for the two goals of a network; True where one is missed."""
    speed_goal, size_goal = GOALS[network]
    fast, small = speed.median >= speed_goal, size <= size_goal
    for what, value, goal, good in (
        (f"{JUDGED}, exact, at 32, {threads} threads", speed, f">= {speed_goal}", fast),
        ("file over FP32", f"{size:.3f}", f"<= {size_goal}", small),
    ):
        print(f"{'PASS' if good else 'MISS'}  {network} {what}: {value} (goal {goal})")
    return not (fast and small)


if __name__ == "__main__":
    sys.exit(main())
