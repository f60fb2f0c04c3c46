"""What an import without its extra says."""

import importlib

import pytest

from ptq_course.errors import MissingExtraError, QuantizationError, needs


def test_what_is_missing_is_named_with_the_command():
    said = r"no_such_library is not installed; .*pip install 'ptq-course\[onnx\]'"
    with pytest.raises(MissingExtraError, match=said) as caught, needs("onnx"):
        importlib.import_module("no_such_library")
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value, QuantizationError)


def test_the_first_refusal_is_the_one_that_is_read():
    said = r"ptq-course\[onnx\]"
    with pytest.raises(MissingExtraError, match=said), needs("course"), needs("onnx"):
        importlib.import_module("no_such_library")


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError), needs("onnx"):
        1 / 0  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name") as caught, needs("onnx"):
        from json import no_such_name  # noqa: F401
    assert not isinstance(caught.value, QuantizationError)
