"""QConfig: a wrong word is an error where it is written, not where it is used."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ptq_course.deploy.targets import TARGETS as RUNTIMES
from ptq_course.errors import QuantizationError
from ptq_course.ranges.calibrators import CALIBRATORS
from ptq_course.simulation.qconfig import TARGETS, QConfig


def test_the_names_are_those_of_the_floors_above():
    for name in CALIBRATORS:
        assert QConfig(activation_range=name).activation_range == name
    assert set(TARGETS) == set(RUNTIMES)
    assert {getattr(QConfig, name)().target for name in TARGETS} == set(TARGETS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"activation_range": "KL"}, "minmax, moving_average, percentile, kl, mse, got 'KL'"),
        ({"activation_range": None}, "got None"),
        ({"weight_granularity": "per_chanel"}, "'per_tensor'.*'per_channel'.*'per_chanel'"),
        ({"weight_granularity": 0}, "integer of at least 1, got 0"),
        ({"weight_granularity": True}, "integer"),
        ({"weight_granularity": 2.0}, "integer"),
        ({"weight_granularity": None}, "integer"),
        ({"quantize_bias": "yes"}, "quantize_bias is True or False, got 'yes'"),
        ({"weight_symmetric": None}, "weight_symmetric"),
        ({"weight_narrow": 1}, "weight_narrow"),
        ({"activation_signed": "int8"}, "activation_signed"),
        ({"activation_symmetric": 0}, "activation_symmetric"),
        ({"target": "onnx"}, "onnxruntime, tensorrt, arm, got 'onnx'"),
        ({"weight_bits": 1}, "bits"),
        ({"activation_bits": 8.0}, "bits"),
        ({"float_layers": "fc"}, "tuple of names"),
        ({"fused_activations": ("gelu",)}, "relu, relu6"),
        ({"activation_symmetric": True}, "activation_signed=True"),
    ],
)
def test_a_wrong_choice_is_refused(changes, words):
    with pytest.raises(QuantizationError, match=words):
        QConfig(**changes)
    with pytest.raises(QuantizationError, match=words):
        replace(QConfig(), **changes)


def test_numpy_integers_become_int():
    config = QConfig(
        weight_bits=np.int64(4), activation_bits=np.int16(8), weight_granularity=np.int32(64)
    )
    assert config == QConfig(weight_bits=4, weight_granularity=64)
    kinds = {type(v) for v in (config.weight_bits, config.activation_bits)}
    assert kinds | {type(config.weight_granularity)} == {int}
