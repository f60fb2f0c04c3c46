"""What `import ptq_course` costs on top of `import torch`, each in a fresh Python.

    python benchmarks/import_time.py [runs]

Budget: at most 0.2 s for the package's whole public surface, torch being loaded already.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

BUDGET = 0.2  # seconds
CODE = """
import json, time
start = time.perf_counter()
import torch
torch_there = time.perf_counter()
import ptq_course
package_there = time.perf_counter()
from ptq_course import *
all_there = time.perf_counter()
print(json.dumps([torch_there - start, package_there - torch_there, all_there - torch_there]))
"""


def measure(runs: int) -> list[float]:
    """Median seconds of: import torch, import ptq_course after it, and every public name."""
    rows = []
    for _ in range(runs):
        answer = subprocess.run(
            [sys.executable, "-c", CODE], capture_output=True, text=True, check=True
        )
        rows.append(json.loads(answer.stdout))
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def main() -> None:
    """Print the medians and their ratios to `import torch`."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    torch_time, package_time, all_time = measure(runs)
    print(f"import torch                     {torch_time:7.3f} s   1.00   (median of {runs})")
    for name, seconds in (
        ("import ptq_course after it", package_time),
        ("and every public name", all_time),
    ):
        print(f"{name:<32} {seconds:7.3f} s   {seconds / torch_time:.2f}")
    verdict = "within" if all_time <= BUDGET else "OVER"
    print(f"{verdict} the budget of {BUDGET} s on top of import torch")


if __name__ == "__main__":
    main()
