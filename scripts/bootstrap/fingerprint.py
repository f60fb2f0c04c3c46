"""What the printed digits of a notebook depend on: processor capability and library versions.

Recorded beside the notebooks when they are executed. Where it matches, their outputs are compared
strictly; elsewhere the last digit of an accuracy may differ with good reason, so only their
assertions are run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from . import pins
from .environment import ROOT, SPIN_COUNT

Fingerprint = Mapping[str, Mapping[str, object]]
FILE = ROOT / "notebooks" / "fingerprint.json"
LIBRARIES = (
    "torch",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "matplotlib",
    "ipython",
    "ipywidgets",
    "tqdm",
    "tokenizers",
    "keras",
    "openvino",
)
# Sums depend on how many threads share them, and sets of strings on the hash seed. Figures are made
# for readers of a page, not for the lab (ptq_classroom/kit/show.py).
KERNEL_VARIABLES = {
    "PTQ_FIGURES": "png",
    "OMP_NUM_THREADS": "2",
    "GOMP_SPINCOUNT": SPIN_COUNT,
    "MKL_NUM_THREADS": "2",
    "PYTHONHASHSEED": "0",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}


def here() -> dict[str, dict[str, object]]:
    """The fingerprint of the running Python; imports torch."""
    import torch

    versions = {name: metadata.version(name) for name in LIBRARIES}
    has_vnni = getattr(
        torch.cpu, "_is_vnni_supported", None
    )  # private: another version may lack it
    return {
        "processor": {
            "family": pins.machine(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "vnni": None if has_vnni is None else bool(has_vnni()),
        },
        "versions": {
            "system": sys.platform,
            "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
            **versions,
        },
    }


def recorded(file: Path = FILE) -> dict[str, dict[str, object]] | None:
    """The fingerprint recorded with the notebooks, or None where none is."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def library_versions(file: Path | None = None) -> dict[str, str]:
    """The versions of the libraries that the notebooks were executed with; PyTorch has its own pin.

    Empty where no fingerprint is recorded.
    """
    versions = (recorded(FILE if file is None else file) or {}).get("versions", {})
    return {name: str(versions[name]) for name in LIBRARIES if name in versions and name != "torch"}


def record(fingerprint: Fingerprint, file: Path = FILE) -> None:
    """Write a fingerprint beside the notebooks."""
    text = json.dumps(fingerprint, indent=1, sort_keys=True) + "\n"
    file.write_text(text, encoding="utf-8", newline="\n")


def differences(then: Fingerprint | None, now: Fingerprint) -> list[str]:
    """What changed between two fingerprints, one phrase each; empty where they match."""
    if then is None:
        return ["no fingerprint was recorded with the notebooks"]
    changed = []
    for part in sorted({*then, *now}):
        before, after = then.get(part, {}), now.get(part, {})
        for name in sorted({*before, *after}):
            if before.get(name) != after.get(name):
                changed.append(f"{name} {before.get(name)} there, {after.get(name)} here")
    return changed
