"""The example cells of the notebook this course grew out of run unchanged; its faults are gone."""

import re
from textwrap import dedent

import pytest
import torch

import ptq_course
from ptq_course.grids.affine import IntGrid, fake_quantize, quantize

# The notebook's own words, as a learner would paste them.
CELLS = {
    "minmax": """
        calibrator = MinMaxCalibrator()
        for _ in range(10):
            x = torch.randn(32, 64) * 0.5
            calibrator.update(x)

        scale, zp = calibrator.compute_scale()
        print(f"Range: [{calibrator.min_val:.4f}, {calibrator.max_val:.4f}]")
        print(f"Scale: {scale:.6f}, Zero-point: {zp}")
    """,
    "percentile": """
        calibrator = PercentileCalibrator(percentile=99.9)
        for _ in range(10):
            x = torch.randn(32, 64) * 0.5
            calibrator.update(x)

        scale, zp = calibrator.compute_scale()
        print(f"Percentile Scale: {scale:.6f}, Zero-point: {zp}")
    """,
    "quantizer": """
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        quantizer = PTQQuantizer(model, bits=8)
        quantizer.quantize_weights()
        print("PTQ 权重量化完成")
    """,
}


def run(cell):
    """Run a cell with the names that the notebook would have defined; returns its variables."""
    names = {name: getattr(ptq_course, name) for name in ptq_course.__all__}
    names |= {"torch": torch, "nn": torch.nn}
    exec(dedent(cell), names)
    return names


def seen():
    """The data that a cell sees after torch.manual_seed(0)."""
    torch.manual_seed(0)
    return torch.cat([torch.randn(32, 64) * 0.5 for _ in range(10)])


def test_minmax_cell(capsys):
    torch.manual_seed(0)
    cell = run(CELLS["minmax"])
    x = seen()
    assert cell["zp"] == 0
    assert cell["scale"] == pytest.approx(float(x.abs().max()) / 127, rel=1e-6)
    number = r"-?\d+\.\d{4}"
    assert re.fullmatch(
        rf"Range: \[{number}, {number}\]\nScale: 0\.\d{{6}}, Zero-point: 0\n",
        capsys.readouterr().out,
    )


def test_percentile_cell(capsys):
    torch.manual_seed(0)
    cell = run(CELLS["percentile"])
    x = seen().flatten()
    ends = torch.stack([torch.quantile(x, 0.001), torch.quantile(x, 0.999)])
    assert cell["zp"] == 0
    assert cell["scale"] == pytest.approx(float(ends.abs().max()) / 127, rel=0.01)
    assert re.fullmatch(r"Percentile Scale: 0\.\d{6}, Zero-point: 0\n", capsys.readouterr().out)


def test_quantizer_cell(capsys):
    torch.manual_seed(0)
    cell = run(CELLS["quantizer"])
    assert "PTQ" in capsys.readouterr().out
    quantizer, model = cell["quantizer"], cell["model"]
    assert (quantizer.model, quantizer.bits) == (model, 8)
    quantized = quantizer.quantize_weights()  # returned; the notebook writes over the model
    layers = quantized.quantized_layers()
    assert {name: layer.weight_codes.dtype for name, layer in layers.items()} == {
        "0": torch.int8,
        "2": torch.int8,
    }
    x = torch.randn(16, 64)
    assert not torch.equal(model(x), quantized(x))
    torch.testing.assert_close(model(x), quantized(x), atol=0.02, rtol=0.02)


def test_the_attributes_that_calibrate_fills():
    """Empty dictionaries first, then one entry for each layer, as in the notebook."""
    names = run(CELLS["quantizer"])
    quantizer = names["quantizer"]
    assert quantizer.calibrators == quantizer.scales == quantizer.zero_points == {}
    data = [(torch.randn(8, 64), torch.zeros(8)) for _ in range(3)]
    quantizer.calibrate(data, num_batches=2)
    for found in (quantizer.calibrators, quantizer.scales, quantizer.zero_points):
        assert list(found) == ["0", "2"]
    seen = torch.cat([x for x, _ in data[:2]])
    assert quantizer.calibrators["0"].max_val == seen.max()
    assert quantizer.scales["0"] == pytest.approx(float(seen.max() - seen.min()) / 255, rel=1e-6)


# --- its faults ----------------------------------------------------------------------------------

BOTH = pytest.mark.parametrize(
    "make", [ptq_course.MinMaxCalibrator, ptq_course.PercentileCalibrator]
)


@BOTH
@pytest.mark.parametrize("constant", [0.0, 3.0, -0.7])
@pytest.mark.parametrize("symmetric", [True, False])
def test_constant_input_does_not_divide_by_zero(make, constant, symmetric):
    calibrator = make()
    calibrator.update(torch.full((64,), constant))
    scale, zero_point = calibrator.compute_scale(symmetric=symmetric)
    assert scale > 0
    qmin, qmax = (-128, 127) if symmetric else (0, 255)
    code = min(max(round(constant / scale) + zero_point, qmin), qmax)
    assert (code - zero_point) * scale == pytest.approx(constant, rel=2**-22)


@BOTH
@pytest.mark.parametrize(("low", "high"), [(2.0, 6.0), (-6.0, -2.0)])
def test_affine_range_away_from_zero_is_widened_to_it(make, low, high):
    """The notebook's zero point for [2, 6] is round(-2 / scale) = -128: no code of 0..255."""
    calibrator = make()
    calibrator.update(torch.linspace(low, high, 5000))
    scale, zero_point = calibrator.compute_scale(symmetric=False)
    assert zero_point == (0 if low > 0 else 255)
    assert scale == pytest.approx(6 / 255, rel=0.01)


def test_more_than_16_million_values():
    """torch.quantile refuses them, and the notebook keeps every one of them in memory."""
    part = torch.randn(2**22 + 1, generator=torch.Generator().manual_seed(2))
    calibrator = ptq_course.PercentileCalibrator(99.9)
    for _ in range(4):
        calibrator.update(part)
    assert calibrator.summary.count > 2**24
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(torch.cat([part] * 4), 0.999)
    _, high = calibrator.range(IntGrid(8), symmetric=False)
    exact = part.sort().values[round(0.999 * (len(part) - 1))]
    assert high == pytest.approx(float(exact), rel=0.01)


def test_rounding_is_followed_by_a_clamp():
    """Percentiles clip, so values beyond the range do come; each must take the last code."""
    calibrator = ptq_course.PercentileCalibrator(99)
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(3))
    calibrator.update(x)
    qparams = calibrator.qparams(IntGrid(8))
    beyond = torch.tensor([1e3, -1e3])
    assert quantize(beyond, qparams).tolist() == [127, -128]
    assert fake_quantize(x, qparams).abs().max() <= 128.001 * float(qparams.scale)
