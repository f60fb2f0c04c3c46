"""Deployment: a file that a runtime executes with integers (chapters 00 and 15)."""

from __future__ import annotations

import importlib
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    """``storage`` is another name of ``checkpoint``, loaded on first use."""
    if name != "storage":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.checkpoint")
