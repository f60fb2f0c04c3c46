"""Opening a Keras file that came from somebody else. Chapter 15.

A model's file can hold code: the bytes of a Lambda layer, or the name of a class anywhere in
Python. Keras's safe mode refuses the first. Here the file's own description is read before Keras
opens it, and whatever is no class of Keras is refused by its name.
"""

from __future__ import annotations

import json
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from ptq_course.errors import MissingExtraError, QuantizationError, UnsupportedError, needs

LIMIT = 50_000_000  # bytes of a description: VGG's has 20 thousand


def import_keras() -> ModuleType:
    """Keras; on PyTorch, where nobody has chosen a backend.

    Raises MissingExtraError without Keras, QuantizationError where its backend is not installed.
    """
    if "keras" not in sys.modules:
        os.environ.setdefault("KERAS_BACKEND", "torch")
    try:
        with needs("keras"):
            import keras
    except MissingExtraError as problem:
        backend = os.environ.get("KERAS_BACKEND", "")
        if problem.__cause__ is not None and getattr(problem.__cause__, "name", "") in (
            "tensorflow", "jax",
        ):  # fmt: skip
            raise QuantizationError(
                f"from_keras: Keras is set to the backend {backend!r}, which is not installed; set "
                "the environment variable KERAS_BACKEND=torch before Keras is imported."
            ) from problem
        raise
    return keras


def open_model(path: Path) -> Any:
    """The model of a `.keras` or `.h5` file, which is read with safe mode on.

    Raises QuantizationError for a missing or damaged file, UnsupportedError where it names a
    Lambda layer or a class that is not Keras's own.
    """
    keras = import_keras()
    if not path.is_file():
        raise QuantizationError(f"from_keras: there is no file {path}.")
    try:
        description = _described(path)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as problem:
        raise QuantizationError(
            f"from_keras: {path} is no Keras model: {problem}. Save it with "
            "model.save('model.keras'); a file of weights alone has no layers to read."
        ) from problem
    for owner, what in _foreign(description, "the model"):
        raise UnsupportedError(
            f"from_keras: {path.name} is not opened: {owner} is {what}, which would run code of "
            "whoever wrote the file. Write it as layers of Keras, or convert a model that you have "
            "built yourself."
        )
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as problem:  # Keras has a type for each of many reasons
        raise QuantizationError(
            f"from_keras: Keras {keras.__version__} cannot read {path}: {problem}"
        ) from problem


def _described(path: Path) -> Any:
    """What the file says of its layers, as JSON."""
    with needs("keras"):
        import h5py
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo("config.json").file_size > LIMIT:
                raise ValueError("its description is too long")
            return json.loads(archive.read("config.json"))
    with h5py.File(path, "r") as file:
        text: Any = file.attrs["model_config"]
    return json.loads(text)


def _foreign(part: Any, owner: str) -> Iterator[tuple[str, str]]:
    """(layer, what is foreign to Keras in it), all through a description."""
    if isinstance(part, list):
        for inner in part:
            yield from _foreign(inner, owner)
    if not isinstance(part, dict):
        return
    config = part.get("config")
    kind = part.get("class_name")
    if isinstance(config, dict) and isinstance(config.get("name"), str):
        owner = f"layer {config['name']!r}"
    if kind in ("Lambda", "__lambda__", "TorchModuleWrapper", "JaxLayer", "TFSMLayer"):
        yield owner, "a Lambda layer" if kind == "Lambda" else f"a {kind}"
    module = part.get("module")
    if kind is not None and isinstance(module, str):
        if module != "builtins" and module.split(".")[0] != "keras":
            yield owner, f"of the class {module}.{kind}"
        if module == "builtins" and kind not in ("function", "type", "slice", "NoneType"):
            yield owner, f"Python's {kind}"
        if kind == "function" and not str(config).isidentifier():
            yield owner, f"the function {config!r}"
    for inner in part.values():
        yield from _foreign(inner, owner)
