"""Post-training quantization, step by step: small reference implementations that a course builds.

A chapter is a module, and the rooms stand in the order of the work: `grids`, `ranges`, `graph`,
`simulation`, `improve`, `integer`, `deploy`, `diagnosis`. Names below are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_MODULE_OF = {
    **dict.fromkeys(
        (
            "IntGrid",
            "QParams",
            "QTensor",
            "block_minmax",
            "choose_qparams",
            "dequantize",
            "fake_quantize",
            "quantize",
        ),
        "grids.affine",
    ),
    **dict.fromkeys(
        (
            "CALIBRATORS",
            "KLCalibrator",
            "MSECalibrator",
            "MinMaxCalibrator",
            "MovingAverageCalibrator",
            "PercentileCalibrator",
        ),
        "ranges.calibrators",
    ),
    **dict.fromkeys(
        ("CalibrationError", "DataIntegrityError", "QuantizationError", "UnsupportedError"),
        "errors",
    ),
    **dict.fromkeys(
        (
            "ablate",
            "all_but_one",
            "compare",
            "diagnose",
            "mixed_precision",
            "one_at_a_time",
            "reach",
            "sensitivity",
            "top1_on",
        ),
        "diagnosis",
    ),
    **dict.fromkeys(("DynamicModel", "quantize_dynamic"), "simulation.dynamic"),
    **dict.fromkeys(("fold_batch_norm", "fuse"), "graph.fusion"),
    **dict.fromkeys(("IntegerModel", "agreement", "to_integer"), "integer"),
    **dict.fromkeys(("flips", "paired_bootstrap", "sqnr_db", "top1"), "grids.metrics"),
    **dict.fromkeys(("ClippingMonitor", "clipped_share"), "simulation.monitor"),
    "QConfig": "simulation.qconfig",
    **dict.fromkeys(("PTQQuantizer", "QuantizedModel"), "simulation.quantizer"),
    "search_ranges": "simulation.range_search",
    "trace": "graph",
}
__all__ = [
    "CALIBRATORS",
    "CalibrationError",
    "ClippingMonitor",
    "DataIntegrityError",
    "DynamicModel",
    "IntGrid",
    "IntegerModel",
    "KLCalibrator",
    "MSECalibrator",
    "MinMaxCalibrator",
    "MovingAverageCalibrator",
    "PTQQuantizer",
    "PercentileCalibrator",
    "QConfig",
    "QParams",
    "QTensor",
    "QuantizationError",
    "QuantizedModel",
    "UnsupportedError",
    "ablate",
    "agreement",
    "all_but_one",
    "block_minmax",
    "choose_qparams",
    "clipped_share",
    "compare",
    "dequantize",
    "diagnose",
    "fake_quantize",
    "flips",
    "fold_batch_norm",
    "fuse",
    "mixed_precision",
    "one_at_a_time",
    "paired_bootstrap",
    "quantize",
    "quantize_dynamic",
    "reach",
    "search_ranges",
    "sensitivity",
    "sqnr_db",
    "to_integer",
    "top1",
    "top1_on",
    "trace",
]


def _version() -> str:
    """What pip installed; a copy that is only on the path has no record of its version."""
    from importlib import metadata

    try:
        return metadata.version("ptq-course")
    except metadata.PackageNotFoundError:
        return "0+not-installed"


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = _version()
    elif name in _MODULE_OF:
        value = getattr(importlib.import_module(f"ptq_course.{_MODULE_OF[name]}"), name)
    else:
        raise AttributeError(f"module 'ptq_course' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


if TYPE_CHECKING:
    __version__: str
    from ptq_course.diagnosis import (
        ablate,
        all_but_one,
        compare,
        diagnose,
        mixed_precision,
        one_at_a_time,
        reach,
        sensitivity,
        top1_on,
    )
    from ptq_course.errors import (
        CalibrationError,
        DataIntegrityError,
        QuantizationError,
        UnsupportedError,
    )
    from ptq_course.graph import trace
    from ptq_course.graph.fusion import fold_batch_norm, fuse
    from ptq_course.grids.affine import (
        IntGrid,
        QParams,
        QTensor,
        block_minmax,
        choose_qparams,
        dequantize,
        fake_quantize,
        quantize,
    )
    from ptq_course.grids.metrics import flips, paired_bootstrap, sqnr_db, top1
    from ptq_course.integer import IntegerModel, agreement, to_integer
    from ptq_course.ranges.calibrators import (
        CALIBRATORS,
        KLCalibrator,
        MinMaxCalibrator,
        MovingAverageCalibrator,
        MSECalibrator,
        PercentileCalibrator,
    )
    from ptq_course.simulation.dynamic import DynamicModel, quantize_dynamic
    from ptq_course.simulation.monitor import ClippingMonitor, clipped_share
    from ptq_course.simulation.qconfig import QConfig
    from ptq_course.simulation.quantized import QuantizedModel
    from ptq_course.simulation.quantizer import PTQQuantizer
    from ptq_course.simulation.range_search import search_ranges
