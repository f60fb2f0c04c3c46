"""Explorer, headless: linked controls, one redraw for many changes, errors shown, static frames."""

from __future__ import annotations

import asyncio
import json
import math
import time

import numpy as np
import pytest
from example_explorer import Staircase, X, explorer

from ptq_classroom.kit.controls import Choice, Slider
from ptq_classroom.kit.explorer_page import NOTE, READOUT, under


def test_frame_is_a_pure_function_of_its_values():
    stairs = Staircase()
    readout, alt = stairs.frame(bits=2, high=1.0, rounding="nearest")
    assert sorted(set(stairs.line.get_ydata().tolist())) == [-1.0, 0.0, 1.0]
    error = float(readout.removeprefix("scale 1.0000, root mean square error "))
    assert error == pytest.approx(math.sqrt((9 + 2 / 24) / 4), rel=0.01)  # integrated by hand
    assert alt == "Staircase of 3 steps from -1 to 1."
    stairs.frame(bits=8, high=4.0, rounding="nearest")
    assert np.abs(stairs.line.get_ydata() - X).max() <= 4.0 / 127 / 2 + 1e-12
    assert stairs.frame(bits=2, high=1.0, rounding="nearest") == (readout, alt)


def test_slider_box_and_picture_follow_each_other():
    e = explorer()
    box = e.box.children[1].children[1]
    before = e.picture.value
    box.value = 6  # typed into the numeric box
    assert e.values["bits"] == 6
    assert e.picture.value != before
    assert "scale 0.0645" in e.readout.value
    assert READOUT in e.readout._dom_classes
    e.inputs["bits"].value = 3
    assert box.value == 3
    assert 'alt="Staircase of 7 steps from -2 to 2."' in e.picture.value


def test_artists_are_reused():
    e = explorer()
    artists = [id(a) for a in e.fig.axes[0].get_children()]
    for bits in range(2, 9):
        e.set(bits=bits)
    assert [id(a) for a in e.fig.axes[0].get_children()] == artists


def test_several_controls_at_once_are_one_redraw():
    e = explorer()
    count = e.redraws
    _, alt = e.set(bits=2, high=1.0, rounding="floor")
    assert e.redraws == count + 1
    assert alt == "Staircase of 3 steps from -1 to 1."


def test_dragging_does_not_queue():
    e = explorer()
    count = e.redraws

    async def drag() -> None:
        for step in range(30):
            e.inputs["high"].value = 0.5 + step / 10
            await asyncio.sleep(0)
        await asyncio.sleep(0.2)

    asyncio.run(drag())
    assert e.redraws - count <= 3
    assert "0.4857" in e.readout.value  # 3.4 / 7: the last position is the one shown


def test_an_error_is_shown_and_does_not_stick():
    e = explorer()
    good = e.frame

    def frame(**values):
        if values["bits"] == 3:
            raise ZeroDivisionError("no <steps>")
        return good(**values)

    e.frame = frame
    e.inputs["bits"].value = 3
    assert "ZeroDivisionError: no &lt;steps&gt;" in e.readout.value
    e.inputs["bits"].value = 4
    assert "scale" in e.readout.value


def test_static_frames_and_restored_state():
    e = explorer()
    line = e.fig.axes[0].lines[1]
    before = np.array(line.get_ydata())
    frames = e.static([{"bits": b} for b in (2, 4, 8)])
    assert all(data.startswith(b"\x89PNG") for data, _, _ in frames)
    assert len({data for data, _, _ in frames}) == 3
    assert [alt.split(" steps")[0] for _, _, alt in frames] == [
        "Staircase of 3", "Staircase of 15", "Staircase of 255",
    ]  # fmt: skip
    assert frames[0][1].startswith("scale 2.0000, ")
    assert np.array_equal(line.get_ydata(), before)
    assert e.static([{"bits": 2}]) == frames[:1]


@pytest.fixture
def displayed(monkeypatch: pytest.MonkeyPatch) -> list:
    import IPython.display

    shown: list = []
    monkeypatch.setattr(IPython.display, "display", lambda data, **_: shown.append(data))
    monkeypatch.delenv("PTQ_FIGURES", raising=False)
    return shown


def test_the_lab_shows_the_widget_alone(displayed: list):
    e = explorer()
    e.show(static=[{"bits": 2}, {"bits": 8}])
    assert displayed[0] is e
    assert [sorted(data) for data in displayed[1:]] == [["text/html", "text/plain"]]
    bundle = e._repr_mimebundle_()
    assert bundle["text/plain"] == "Widget: Staircase"
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_under_it_stand_a_note_and_what_a_screen_reader_says(displayed: list):
    """Two explorers, two marks: each script speaks to its own box, and to no other."""
    marks = []
    for e in (explorer(), explorer()):
        e.show()
        text = displayed[-1]["text/html"]
        (mark,) = e.box._dom_classes
        marks.append(mark)
        assert f'"mark": "{mark}"' in text
        assert f'<p class="{mark}-note">' in text
        assert displayed[-1]["text/plain"] == NOTE
    assert len(set(marks)) == 2


def test_the_script_gets_names_units_and_digits():
    controls = [
        Slider("gain", 0.5, 4.0, 2.0, step=0.05, label="gain </script>", unit="dB"),
        Choice("rounding", ("nearest", "floor"), "nearest"),
        Slider("t", 0.1, 100.0, 1.0, log=True),
        Slider("bits", 2, 8, 4),
    ]
    text = under("ptq-1", "A title", controls)["text/html"]
    assert text.count("</script>") == 1  # a label cannot end the script
    given = json.loads(text.split(" = ", 1)[1].split(";\n")[0])
    assert given["sliders"] == [
        {"label": "gain </script>", "unit": "dB", "log": False, "digits": 2},
        {"label": "t", "unit": "", "log": True, "digits": 3},
        {"label": "bits", "unit": "", "log": False, "digits": 0},
    ]


def test_a_page_shows_frames_of_the_widget_as_well(
    displayed: list, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PTQ_FIGURES", "png")
    e = explorer()
    e.show(static=[{"bits": 2}, {"bits": 8}])
    assert displayed[0] is e
    assert [data["text/plain"].split(",")[0] for data in displayed[1::2]] == [
        "scale 2.0000", "scale 0.0157",
    ]  # fmt: skip
    assert [data["text/plain"] for data in displayed[2::2]] == [
        "Staircase of 3 steps from -2 to 2.",
        "Staircase of 255 steps from -2 to 2.",
    ]
    assert all("image/png" in data for data in displayed[2::2])


def test_a_redraw_is_quick():
    e = explorer()
    times = []
    for step in range(9):
        start = time.process_time()
        e.set(high=1.0 + step / 10)
        times.append(time.process_time() - start)
    assert sorted(times)[4] < 0.3  # measured 0.04 to 0.08 s; loose for a busy machine
