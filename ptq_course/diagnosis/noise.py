"""How much noise do parts of a network make at its output? For the choices of `reach`. Chapter 10.

No labels are needed, and some calibration data do: this gives an order and a share, not a score.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from torch import nn

from ptq_course.diagnosis.parts import partly, parts_of
from ptq_course.diagnosis.remedies import Recipe, Workshop, batches_for
from ptq_course.diagnosis.sensitivity import at_bits
from ptq_course.diagnosis.sizes import fp16_bytes, layer_bytes
from ptq_course.graph import copied
from ptq_course.simulation.observe import output_noise, outputs_over, placed
from ptq_course.simulation.quantized import QuantizedModel

EXAMPLES = 256  # of the calibration data


class OutputNoise:
    """Noise over signal at the output, of the median example; several outputs count alike."""

    def __init__(self, workshop: Workshop, recipe: Recipe) -> None:
        self.quantizer = workshop.quantizer(recipe)
        model, names = copied(workshop.model), self.quantizer.network.input_names
        count = batches_for(workshop.calibration, names, EXAMPLES)
        self.batches = [placed(x, names, model) for x in islice(workshop.calibration, count)]
        self.expected = outputs_over(model, self.batches)

    def of(self, version: nn.Module) -> float:
        """QuantizationError where the outputs cannot be compared."""
        noises = output_noise(self.expected, outputs_over(version, self.batches), [])
        found = [n.snr_median for n in noises]
        parts = [0.0 if decibels is None else 10 ** (-decibels / 10) for decibels in found]
        return sum(parts) / max(1, len(parts))

    def share_of_weights(self) -> float:
        """Noise with rounded weights alone, over that with all that is rounded; 1: no other."""
        quantized = self.quantizer.convert()
        whole = self.of(quantized)
        return self.of(partly(quantized, None, ())) / whole if whole > 0 else 0.0

    def order(self, width: int | None) -> list[str]:
        """Layers by what ``width`` bits (None: FP16) would win for their bytes, the most first."""
        now, bits = self.quantizer.convert(), [] if width is None else [width]
        layers = now.quantized_layers()
        names = [
            n for n, layer in layers.items()
            if width is None or (layer.weight_grid is not None and layer.weight_grid.bits < width)
        ]  # fmt: skip
        alone = [self._alone(version, names) for version in (now, *at_bits(self.quantizer, bits))]
        wider = alone[1] if bits else dict.fromkeys(names, 0.0)
        worth = {}
        for name in names:
            layer = layers[name]
            if width is None:
                extra = fp16_bytes(layer.float_layer) - layer_bytes(layer)
            else:
                assert layer.weight_grid is not None
                extra = layer.weight_codes.numel() * (width - layer.weight_grid.bits) / 8
            worth[name] = (alone[0][name] - wider[name]) / max(1.0, extra)
        return sorted(names, key=lambda name: -worth[name])

    def _alone(self, version: QuantizedModel, names: Sequence[str]) -> dict[str, float]:
        parts = parts_of(version)
        return {name: self.of(partly(version, *parts.only([name]))) for name in names}
