"""The README's snippets run as they stand, and keep what its table promises."""

from __future__ import annotations

import re

import pytest

from ptq_classroom import load_split, loader
from ptq_course.deploy import onnx
from ptq_course.diagnosis import top1_on

MOST_LOST = 0.005  # of the test pictures: issue and README promise half a point


@pytest.mark.slow
def test_the_snippets_run_and_the_int8_file_loses_at_most_half_a_point(
    root, tmp_path, monkeypatch, capsys
):
    page = (root / "README.md").read_text(encoding="utf-8")
    convert, diagnose = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(convert, names)
    assert "percentile" in capsys.readouterr().out
    evaluate = top1_on(loader(load_split("test")))
    before = evaluate(names["model"]).mean().item()
    runtime = onnx.session(tmp_path / "resnet_int8.onnx")
    assert before - evaluate(runtime).mean().item() <= MOST_LOST
    exec(diagnose, names)
    assert "Is the drop real?" in capsys.readouterr().out
