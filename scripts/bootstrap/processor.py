"""What the processor can do for INT8 arithmetic, found without any library: before setup too."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from . import pins

_VNNI_FLAGS = {"avx512_vnni", "avx_vnni", "avx512vnni", "avxvnni", "avx_vnni_int8"}
_DOT_FLAGS = {"asimddp"}


@dataclass(frozen=True)
class Processor:
    """A processor: its name, family, vector width, and whether it sums 8-bit products exactly."""

    name: str
    family: str
    vectors: str
    # VNNI on x86, the dot-product instructions on ARM; None: not found out
    dot_product: bool | None

    @property
    def is_arm(self) -> bool:
        """Whether it is an ARM processor."""
        return self.family in ("arm64", "aarch64")

    def line(self) -> str:
        """One line for a report."""
        instructions = "dot-product instructions" if self.is_arm else "VNNI"
        having = {True: f"with {instructions}", None: f"{instructions} not known"}
        found = having.get(self.dot_product, f"without {instructions}")
        return ", ".join(filter(None, [self.name, self.family, self.vectors, found]))


def read(system: str = sys.platform, family: str | None = None) -> Processor:
    """The processor of this machine, as far as the system tells."""
    family = family or pins.machine()
    if system.startswith("linux"):
        return from_cpuinfo(_text(Path("/proc/cpuinfo")), family)
    if system == "darwin":
        name = _output(["sysctl", "-n", "machdep.cpu.brand_string"]) or "processor of a Mac"
        return Processor(name, family, "NEON", True if family == "arm64" else None)
    return Processor(platform.processor() or "processor", family, "", None)


def from_cpuinfo(text: str, family: str) -> Processor:
    """Read the text of Linux's /proc/cpuinfo."""
    fields = dict(re.findall(r"^([^\t:\n]+?)\s*:\s*(.*)$", text, flags=re.MULTILINE))
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    name = fields.get("model name") or "processor"
    if family in ("arm64", "aarch64"):
        return Processor(name, family, "NEON", bool(flags & _DOT_FLAGS) if flags else None)
    widths = [("AVX-512", "avx512f"), ("AVX2", "avx2"), ("AVX", "avx")]
    vectors = next((shown for shown, flag in widths if flag in flags), "")
    return Processor(name, family, vectors, bool(flags & _VNNI_FLAGS) if flags else None)


def meaning(processor: Processor) -> str:
    """What that means for the course, in sentences for a student."""
    if processor.is_arm and processor.dot_product is not False:
        return "INT8 sums are exact here: the processor adds products of 8-bit numbers in 32 bits."
    if processor.dot_product:
        return "INT8 sums are exact and fast here: VNNI adds products of 8-bit numbers in 32 bits."
    if processor.is_arm:
        return "INT8 sums are exact here, but without dot-product instructions not much faster."
    known = (
        "This processor has no VNNI." if processor.dot_product is False else "If it has no VNNI:"
    )
    return (
        f"{known} INT8 programs then add two products in 16 bits first, and such a sum can "
        "saturate: 255 * 127 + 255 * 127 = 64770, but 16 bits end at 32767. A fast INT8 program "
        "may then give wrong numbers without a word. The course tests before it trusts one "
        "(chapter 08 explains it). INT8 also gains less speed here than on newer processors."
    )


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
