"""What all tests share: reproducible generated inputs, the course's folder, and a browser."""

import functools
import os
from pathlib import Path

import pytest
from hypothesis import settings
from launch import NoBrowser, launched

ROOT = Path(__file__).resolve().parents[1]
# The same inputs in every run, no deadline on a busy machine. HYPOTHESIS_PROFILE=explore: more.
settings.register_profile("course", derandomize=True, deadline=None, max_examples=50)
settings.register_profile("explore", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "course"))


@pytest.fixture(scope="session")
def root():
    """The course's folder."""
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def onnx_functions_parsed_once():
    """torch.onnx.export parses 500 functions of onnxscript for each file: half of its time.

    They never change within a process. Where a PyTorch keeps them elsewhere, tests take longer.
    """
    try:
        from torch.onnx._internal._lazy_import import onnxscript_apis as apis
    except ImportError:
        return
    apis.get_torchlib_ops = functools.cache(lambda: apis.__getattr__("get_torchlib_ops")())


@pytest.fixture(scope="module")
def chromium():
    """Chromium as a playwright Browser; skips, with the reason, where there is none.

    Not for the whole session: as long as playwright is open, an event loop runs in this thread, and
    code under test that asks for one (a widget, `asyncio.run`) would behave as it does in a kernel.
    """
    try:
        with launched() as browser:
            yield browser
    except NoBrowser as reason:
        pytest.skip(str(reason))
