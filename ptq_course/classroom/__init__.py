"""The classroom: data, networks, plots, widgets, exercises. The subject never imports it.

Names load on first use (PEP 562), so `from ptq_course.classroom import check, show` stays fast.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "check": "exercises",
    "hint": "helpers",
    "solution": "helpers",
    "reset": "helpers",
    "predict": "prediction",
    "term": "glossary",
    "show": "plots.base",
    "Explorer": "widgets.base",
    "Slider": "widgets.base",
    "Choice": "widgets.base",
    "load_split": "datasets",
    "to_input": "datasets",
    "loader": "datasets",
    "EmojiGenerator": "datasets",
    "CLASS_NAMES": "datasets",
    "GROUPS": "datasets",
    "load_model": "models",
    "manifest": "models",
    "logits": "evaluate",
}
_MODULES = ("learner", "plots", "widgets", "datasets", "models", "evaluate", "glossary")

__all__ = [*_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
