"""The headline benchmark's table and the place it is written to; measuring is not a test."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from ptq_course.deploy.session import Speedup
from ptq_course.grids.metrics import Flips

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def headline():
    spec = importlib.util.spec_from_file_location("headline", ROOT / "benchmarks" / "headline.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def times(median: float):
    return Speedup(median, median - 0.1, median + 0.2)


def rows(headline, speed: float = 1.5, searched: float = 0.916):
    lost = Flips(total=1000, both_right=900, lost=20, gained=5, both_wrong=75, changed=30)
    return [
        headline.Row("resnet", "FP32", 0.92, 1_600_000),
        headline.Row(
            "resnet", "INT8, searched", searched, 400_000, lost, (-0.004, -0.01, 0.001),
            {1: times(1.2), 32: times(speed)}, {1: times(1.3), 32: times(1.9)},
        ),
        headline.Row("resnet", "INT8, KL", 0.905, 400_000, lost, (-0.015, -0.03, -0.001)),
        headline.Row(
            "resnet", "INT8, KL, 7-bit weights", 0.9, 400_000, lost, (-0.02, -0.03, -0.001),
            {1: times(9.0), 32: times(9.0)}, {1: times(9.0), 32: times(9.0)},
        ),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("saturates", "cell"),
    [(True, "1.5x (1.4 to 1.7), unguarded 1.9x"), (False, "1.5x (1.4 to 1.7)")],
)
def test_the_table(headline, monkeypatch, saturates: bool, cell: str):
    monkeypatch.setattr(headline, "products_saturate", lambda: saturates)
    lines = headline.table(rows(headline)).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| ResNet-like | FP32 | 92.0 % |")
    assert "| 91.6 % | 20 / 5 | -0.4 (-1.0 to +0.1) | 0.25x |" in lines[3]
    assert lines[3].endswith(f"| {cell} |")
    assert lines[4].endswith("| as searched | as searched |")


def test_budgets_are_judged(headline, capsys):
    """A version that is nine times as fast does not help the one that is judged."""
    assert headline.budgets(rows(headline)) == [True, True, False]
    said = capsys.readouterr().out
    miss = "MISS  resnet exact speed of INT8, searched at 32: 1.50x (1.40 to 1.70) (budget >= 2"
    assert miss in said
    assert headline.budgets(rows(headline, speed=2.5)) == [True, True, True]
    assert headline.budgets(rows(headline, 2.5, searched=0.914)) == [False, True, True]
    said = capsys.readouterr().out
    assert (
        "MISS  resnet top-1 of INT8, searched, against FP32: -0.60 points (budget >= -0.5" in said
    )


def test_only_the_part_between_the_markers_is_replaced(headline, tmp_path: Path):
    page = tmp_path / "README.md"
    page.write_text(f"above\n{headline.BEGIN}\nold\n{headline.END}\nbelow\n", encoding="utf-8")
    headline.write("new", page)
    headline.write("newer", page)
    expected = f"above\n{headline.BEGIN}\nnewer\n{headline.END}\nbelow\n"
    assert page.read_text(encoding="utf-8") == expected


def test_a_page_without_markers_is_refused_and_kept(headline, tmp_path: Path):
    page = tmp_path / "README.md"
    page.write_text("nothing to replace\n", encoding="utf-8")
    with pytest.raises(ValueError, match="headline:begin"):
        headline.write("new", page)
    assert page.read_text(encoding="utf-8") == "nothing to replace\n"


def test_the_readme_has_the_markers_once(headline):
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert page.count(headline.BEGIN) == page.count(headline.END) == 1
