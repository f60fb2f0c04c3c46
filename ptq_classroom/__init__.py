"""The classroom: data, networks, plots, widgets, exercises. The subject never imports it.

Names load on first use (PEP 562), so `from ptq_classroom import check, show` stays fast.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Any

from ptq_course.errors import needs

with needs("course"):
    for _library in ("matplotlib", "ipywidgets", "pillow"):
        metadata.distribution(_library)  # looks for it without loading it

_HOME = {
    "check": "kit.checking",
    "hint": "kit.helpers",
    "solution": "kit.helpers",
    "reset": "kit.helpers",
    "predict": "kit.prediction",
    "quiz": "kit.quiz",
    "term": "kit.glossary",
    "points": "kit.show",
    "show": "kit.show",
    "Explorer": "kit.explorer",
    "Slider": "kit.explorer",
    "Choice": "kit.explorer",
    "load_split": "pictures.datasets",
    "to_input": "pictures.datasets",
    "loader": "pictures.datasets",
    "EmojiGenerator": "pictures.datasets",
    "CLASS_NAMES": "pictures.datasets",
    "GROUPS": "pictures.datasets",
    "load_model": "pictures.models",
    "manifest": "pictures.models",
    "logits": "pictures.evaluate",
}
_MODULES = {
    "learner": "kit.learner",
    "glossary": "kit.glossary",
    "datasets": "pictures.datasets",
    "models": "pictures.models",
    "evaluate": "pictures.evaluate",
}

__all__ = [*_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
