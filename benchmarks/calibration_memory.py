"""Peak memory of calibration for 10, 100 and 1000 batches: streaming against store-everything.

    python benchmarks/calibration_memory.py

Each figure comes from a process of its own (resource.getrusage, which unlike tracemalloc sees
PyTorch's memory), less what a process needs that sees one batch with torch.aminmax. "stored" is the
percentile calibrator that keeps every value and calls torch.quantile at the end, as beginners (and
the notebook that this course grew out of) write it.

Budget: a calibrator needs as much for 1000 batches as for 10, to 2 MiB (990 batches hold 278 MiB);
the exit code is 1 when one needs more.
"""

from __future__ import annotations

import subprocess
import sys

from ptq_course.ranges.calibrators import CALIBRATORS

BATCHES = (10, 100, 1000)
SHAPE = (32, 64, 6, 6)  # 73,728 values, 0.28 MiB a batch: 1000 of them are 281 MiB
BUDGET_MIB = 2.0  # more for 1000 batches than for 10


class Stored:
    """The percentile of everything: keeps it all."""

    def __init__(self):
        self.values = []

    def update(self, x):
        self.values.append(x.flatten().clone())

    def compute_scale(self):
        import torch

        everything = torch.cat(self.values)
        try:
            return float(torch.quantile(everything, 0.999)) / 127, 0
        except RuntimeError as error:
            return str(error).split("\n")[0], 0


class Nothing:
    """What any calibration needs: the batch and one pass over it."""

    def update(self, x):
        x.aminmax()

    def compute_scale(self):
        return 0.0, 0


def child(name: str, batches: int) -> None:
    """Calibrate on generated batches, then print the peak in KiB and the scale found."""
    import resource

    import torch

    torch.set_num_threads(1)
    others = {"stored": Stored, "nothing": Nothing}
    calibrator = others[name]() if name in others else CALIBRATORS[name]()
    generator = torch.Generator().manual_seed(0)
    x = torch.empty(SHAPE)
    for _ in range(batches):
        calibrator.update(x.normal_(generator=generator))
    scale, _ = calibrator.compute_scale()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak // (1024 if sys.platform == "darwin" else 1), scale)


def measure(name: str, batches: int) -> tuple[float, str]:
    """(peak in MiB, scale) of a process that calibrates."""
    answer = subprocess.run(
        [sys.executable, __file__, "--child", name, str(batches)],
        capture_output=True,
        text=True,
        check=True,
    )
    peak, scale = answer.stdout.split(maxsplit=1)
    return int(peak) / 1024, scale.strip()


def main() -> int:
    """Print a row for each calibrator; the exit code says whether all of them met the budget."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]))
        return 0
    if sys.platform == "win32":
        print("left out: Windows has no resource.getrusage")
        return 0
    base, _ = measure("nothing", 1)
    print(f"{base:.0f} MiB for PyTorch, the package and one batch of {'x'.join(map(str, SHAPE))}")
    print(
        "MiB above that    " + "".join(f"{n:>14} batches" for n in BATCHES) + "   scale at the end"
    )
    growth = {}
    for name in ("nothing", *CALIBRATORS, "stored"):
        rows = [measure(name, n) for n in BATCHES]
        growth[name] = rows[-1][0] - rows[0][0]
        figures = "".join(f"{peak - base:22.1f}" for peak, _ in rows)
        print(f"  {name:<16}{figures}   {rows[-1][1]}")
    most = max(CALIBRATORS, key=growth.get)
    met = growth[most] <= BUDGET_MIB
    print(
        f"  {'PASS' if met else 'MISS'}  {BATCHES[-1]} batches against {BATCHES[0]}: at most "
        f"{growth[most]:+.1f} MiB, {most} (budget <= {BUDGET_MIB:g} MiB)"
    )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
