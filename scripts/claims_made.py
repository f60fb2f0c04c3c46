"""The claims of the two founding texts, in our words, each with its evidence and its verdict."""

from __future__ import annotations

from claims import Claim

N = r"([+-]?\d+(?:\.\d+)?)"  # a number

CLAIMS = (
    # --- how it is done -------------------------------------------------------------------------
    Claim(
        "PTQ needs no training: a few examples fix scales and zero points",
        "article", "00", "agrees",
        "INT8 from a trained network and 1,000 pictures: FP32 {0} %, INT8 {1} % at first, {2} % with a better rule",
        (("00", rf"FP32 {N} %\nINT8 {N} %"), ("00", rf"percentile {N} %")),
        lambda fp32, first, better: fp32 - better < 1,
    ),
    Claim(
        "Calibration needs no labels", "article", "09", "agrees",
        "the first layer's scale is {0} with the right labels, with shuffled ones and with none",
        (("09", rf"the scale of the first layer: \['{N}', '{N}', '{N}'\]"),),
        lambda a, b, c: a == b == c,
    ),
    Claim(
        "100 to 1,000 examples are enough", "article", "09", "agrees",
        "percentile on all pictures: from 10 to 1,000 pictures {0} points (interval {1} to {2})",
        (("09", rf"percentile 10 to 1000, all pictures {N} points \({N} to {N}\)"),),
        lambda change, low, high: low < 0 < high,
    ),
    Claim(
        "Too few examples give bad statistics", "article", "09", "agrees",
        "for the rare flash pictures yes: percentile from 10 to 1,000 pictures {0} points ({1} to {2}); 10 pictures miss the flash in {3} % of the draws",
        (("09", rf"percentile 10 to 1000, flash\s+{N} points \({N} to {N}\)"),
         ("09", rf"flash\s+\(2\.5 % of the pictures\) is missed by.*?10: {N} %")),
        lambda change, low, high, missed: low > 0 and missed > 50,
    ),
    Claim(
        "More examples than that only cost time", "article", "09", "refuted",
        "not under min-max: more pictures bring more outliers. From 10 to 1,000 pictures {0} points ({1} to {2})",
        (("09", rf"minmax\s+10 to 1000, all pictures {N} points \({N} to {N}\)"),),
        lambda change, low, high: high < 0,
    ),
    Claim(
        "Calibration data must cover the distribution of live inputs", "article", "09", "agrees",
        "ranges from uniform noise cost {0} points ({1} to {2})",
        (("09", rf"torch\.rand\s+all pictures minmax {N} points \({N} to {N}\)"),),
        lambda change, low, high: high < -10,
    ),
    Claim(
        "Quantizing takes minutes", "article", "00", "agrees",
        "seconds here: chapter 00 calibrates, quantizes, exports and measures in less than a minute (every notebook is held to that)",
    ),
    Claim(
        "Fusing Conv + BN + ReLU leaves fewer places to quantize", "article", "04", "agrees",
        "{0} Q/DQ pairs before, {1} after; at 6 bits {2} % become {3} %",
        (("04", rf"whole network: {N} before fusion, {N} after"),
         ("04", rf"unfused\s+37 values, 6 bits: {N} %\nfused\s+17 values, 6 bits: {N} %")),
        lambda before, after, unfused, fused: after < before and fused > unfused,
    ),
    # --- granularity and grids ------------------------------------------------------------------
    Claim(
        "A scale for each channel saves 2 to 3 points in a ResNet", "article", "05", "differs",
        "it depends on the bits: ResNet-like {0} points at 8 bits, {1} at 4, {2} at 3; MobileNetV2-like {3} at 6",
        (("05", rf"resnet\s+8 bits {N} points"), ("05", rf"resnet\s+4 bits {N} points"),
         ("05", rf"resnet\s+3 bits {N} points"), ("05", rf"mobilenet\s+6 bits {N} points")),
        lambda eight, four, three, depthwise: eight < 1 < four < three and depthwise > 10,
    ),
    Claim(
        "One scale for a whole tensor is simple and less accurate", "article", "05", "agrees",
        "one layer, 4 bits: {0} dB with one scale, {1} dB by channel, {2} dB by group",
        (("05", rf"1 scales \(tensor\), {N} dB"), ("05", rf"3 scales \(channel\), {N} dB"),
         ("05", rf"6 scales \(group\), {N} dB")),
        lambda tensor, channel, group: tensor < channel < group,
    ),
    Claim(
        "Weights may take min-max: they are fixed and well behaved", "article", "06", "agrees",
        "8-bit weights alone cost {0} points",
        (("06", rf"W8A32: {N} points"),),
        lambda change: abs(change) < 0.5,
    ),
    Claim(
        "Activations are the difficult half", "article", "06", "agrees",
        "activations alone {1} points, weights alone {0}",
        (("06", rf"W8A32: {N} points\nW32A8: {N} points"),),
        lambda weights, activations: activations < weights - 1,
    ),
    # --- range rules ----------------------------------------------------------------------------
    Claim(
        "Min-max is quick, and one outlier spoils it", "both", "02", "agrees",
        "with a largest value a hundred times as large the bulk falls from {0} to {1} dB",
        (("02", rf"largest value\s+4\.6: the bulk keeps\s+{N} dB"),
         ("02", rf"largest value\s+456\.3: the bulk keeps\s+{N} dB")),
        lambda alone, with_outlier: with_outlier < alone - 20,
    ),
    Claim(
        "Keeping 99.9 % of the values tames outliers", "article", "02", "agrees",
        "with an outlier of 456 the bulk keeps {0} dB at p99.9; on a network at 4 bits p99.9 gains {1} points over min-max",
        (("02", rf"p99\.9 = 3\.26, largest = 456\nthe bulk keeps {N} dB"),
         ("02", rf"p99\.9 over min-max: {N} points")),
        lambda decibels, gain: decibels > 30 and gain > 10,
    ),
    Claim(
        "A percentile needs more memory", "notebook", "02", "differs",
        "only if it keeps the values: {0} bytes after 30 batches, {1} from a histogram, for ever",
        (("02", r"30 batches: stored ([\d,]+) bytes, streaming ([\d,]+)"),),
        lambda stored, streaming: streaming < stored,
    ),
    Claim(
        "KL calibration is robust against outliers", "article", "03", "agrees",
        "whole network at 8 bits {0} points over min-max ({1} to {2}), at 6 bits {3}",
        (("06", rf"resnet\s+8 bits: KL over min-max {N} points \({N} to {N}\)"),
         ("06", rf"resnet\s+6 bits: KL over min-max {N} points")),
        lambda gain, low, high, six: low > 0 and six > 10,
    ),
    Claim(
        "KL costs more time than min-max", "article", "03", "agrees",
        "the search as a loop; all windows at once take its time divided by about {0}",
        (("03", rf"divided by ~{N}"),),
        lambda factor: factor > 20,
    ),
    Claim(
        "A histogram's rule (KL) is the best one", "notebook", "03", "refuted",
        "not everywhere: log-normal values keep {0} dB with min-max and {2} dB with KL; flash pictures change by {3} points with KL",
        (("03", rf"log-normal\s+min-max {N} dB, MSE {N} dB, KL {N} dB"),
         ("03", rf"flash\s+KL gains {N} points")),
        lambda minmax, mse, kl, flash: minmax > kl and mse > kl and flash < 0,
    ),
    Claim(
        "ReLU6 activations have outliers, because they overflow", "article", "11", "refuted",
        "ReLU6 cannot give a value above 6: it removes them. Without it the network falls to {0} % ({1} points)",
        (("11", rf"FP32, ReLU\s+{N} %"), ("11", rf"ReLU instead of ReLU6: {N} points")),
        lambda accuracy, change: change < 0,
    ),
    # --- dynamic, static ------------------------------------------------------------------------
    Claim(
        "Dynamic quantization computes with FP32 activations", "notebook", "07", "refuted",
        "they are 8-bit integers, with a scale found at run time: the exported file multiplies integers in {0} layers",
        (("07", rf"'DynamicQuantizeMatMul': {N}"),),
        lambda layers: layers >= 1,
    ),
    Claim(
        "In static quantization activations are quantized dynamically while the network runs",
        "article", "07", "differs",
        "they are rounded at run time, on scales fixed before: quiet frames score {0} % with static scales and {1} % with dynamic ones",
        (("07", rf"static, min-max\s+quietest {N} %"),
         ("07", rf"dynamic per token\s+quietest {N} %")),
        lambda static, dynamic: static < dynamic,
    ),
    Claim(
        "Dynamic quantization copes with ranges that move", "article", "07", "agrees",
        "all frames {2} points over static min-max ({3} to {4})",
        (("07", rf"dynamic per token\s+quietest {N} %\s+loudest {N} %\s+all, over min-max: {N} points \({N} to {N}\)"),),
        lambda quiet, loud, gain, low, high: low > 0,
    ),
    Claim(
        "A scale that is symmetric suits weights, an affine one activations", "article", "01", "agrees",
        "a symmetric grid loses {0} dB on values like weights and {1} dB on values after a ReLU",
        (("01", rf"like weights\s+symmetric loses {N} dB"),
         ("01", rf"after a ReLU\s+symmetric loses {N} dB")),
        lambda bell, one_sided: bell < 1 < 5 < one_sided,
    ),
    # --- what it brings -------------------------------------------------------------------------
    Claim(
        "Files become 4 to 8 times smaller", "article", "00, 07", "agrees",
        "{0} times at 8 bits; {2} of FP32 at 4 bits",
        (("00", rf"^{N}x smaller"), ("07", rf"4 bits, per_channel {N} %, file {N} of FP32")),
        lambda times, accuracy, share: times > 3.5 and share < 0.16,
    ),
    Claim(
        "Inference becomes 2 to 4 times faster", "article", "00", "differs",
        "ResNet-like {0}x at one picture, {1}x at 32; MobileNetV2-like {2}x and {3}x; only on processors whose INT8 products are exact",
        (("README", rf"INT8, searched \| 92\.\d %.*?\| {N}x \([^|]*\| {N}x"),
         ("README", rf"MobileNetV2-like.*?INT8, searched \|.*?\| {N}x \([^|]*\| {N}x")),
        lambda one, many, one_mobile, many_mobile: one < 2 < many < 4 and one_mobile < 2,
    ),
    Claim(
        "It suits CNNs and light networks such as MobileNet", "article", "00", "agrees",
        "INT8 changes the MobileNetV2-like network by {0} points (interval {1} to {2})",
        (("README", rf"MobileNetV2-like.*?INT8, searched \|.*?\| {N} \({N} to {N}\)"),),
        lambda change, low, high: low > -1,
    ),
    Claim(
        "4 bits lose much more", "article", "00", "agrees",
        "min-max from {0} % at 8 bits to {1} % at 4; KL from {2} % to {3} %",
        (("06", rf"resnet\s+8 bits minmax\s+{N} %"), ("06", rf"resnet\s+4 bits minmax\s+{N} %"),
         ("06", rf"resnet\s+8 bits kl\s+{N} %"), ("06", rf"resnet\s+4 bits kl\s+{N} %")),
        lambda eight, four, kl8, kl4: four < 10 and kl4 < kl8 - 3,
    ),
    Claim(
        "A YOLO-like detector in INT8 loses 3 points of mAP, and 0.5 with its output layer in FP16",
        "article", "10", "differs",
        "our detector loses {0} points ({1} to {2}), and {4} with the join of boxes and scores in floating point; the output layer alone brings nothing ({3})",
        (("10", rf"mAP, all INT8: {N} points \({N} to {N}\)"),
         ("10", rf"output layer in float\s+{N} points"), ("10", rf"the join in float\s+{N} points")),
        lambda all_, low, high, layer, join: high < 0 and join > -1 and layer < join - 1,
    ),
    Claim(
        "Sensitive layers stay in higher precision, the others in INT8", "article", "10", "agrees",
        "all in 4 bits the detector has {0} % mAP, with its small output layer in FP16 {1} %",
        (("10", rf"84\.4 kB\s+mAP {N}\s+4 bits\s+85\.6 kB\s+mAP {N}\s+\+ head"),
         ),
        lambda four, kept: kept > four + 20,
    ),
    Claim(
        "KL calibration loses 1.5 points less than min-max on BERT", "article", "12", "refuted",
        "on a BERT-like encoder KL finds {0} points fewer paraphrases ({1} to {2}); mean cosine to FP32 {3} with min-max, {4} with KL",
        (("12", rf"min-max to KL: {N} points \({N} to {N}\)"),
         ("12", rf"8 bits\s+minmax\s+cosine {N}"), ("12", rf"8 bits\s+kl\s+cosine {N}")),
        lambda change, low, high, minmax, kl: high < 0 and kl < minmax - 0.05,
    ),
    Claim(
        "Transformers lose more than other networks; BERT 2 to 3 points on GLUE", "article", "12", "differs",
        "it depends on the rule: {3} points ({4} to {5}) with min-max; the 99.9 percentile, good elsewhere, brings the cosine from {0} to {1}; dynamic {2}",
        (("12", rf"8 bits\s+minmax\s+cosine {N}"), ("12", rf"8 bits\s+percentile\s+cosine {N}"),
         ("12", rf"8 bits\s+dynamic\s+cosine {N}"),
         ("12", rf"FP32 to min-max: {N} points \({N} to {N}\)")),
        lambda minmax, percentile, dynamic, change, low, high: percentile < minmax < dynamic and low < 0 < high,
    ),
    Claim(
        "A ResNet loses more than 5 points with INT4", "article", "13", "differs",
        "weights and activations to nearest {0} points ({1} to {2}), with GPTQ {3}; weights alone on 8-bit activations {4} and, with GPTQ, {5}",
        (("13", rf"resnet\s+W4A4, nearest against FP32: {N} points \({N} to {N}\)"),
         ("13", rf"resnet\s+W4A4, GPTQ\s+against FP32: {N} points"),
         ("13", rf"resnet\s+W4A8, nearest against FP32: {N} points"),
         ("13", rf"resnet\s+W4A8, GPTQ\s+against FP32: {N} points")),
        lambda both, low, high, gptq, weights, weights_gptq: both < gptq and weights < weights_gptq,
    ),
    Claim(
        "Weight clustering helps at 4 bits and below", "article", "13", "differs",
        "3 bits: ResNet-like {0} % on a grid, {1} % with a codebook; MobileNetV2-like {2} and {3} %; GPTQ {4} and {5} %",
        (("13", rf"resnet, 3 bits\s+{N} %"), ("13", rf"resnet, 3 bits, codebook\s+{N} %"),
         ("13", rf"mobilenet, 3 bits\s+{N} %"), ("13", rf"mobilenet, 3 bits, codebook\s+{N} %"),
         ("13", rf"resnet, 3 bits, GPTQ\s+{N} %"), ("13", rf"mobilenet, 3 bits, GPTQ\s+{N} %")),
        lambda grid, book, m_grid, m_book, gptq, m_gptq: gptq > book and m_gptq > m_book,
    ),
    Claim(
        "Mixed bit widths help at 4 bits and below", "article", "13", "agrees",
        "for the size of 3 bits everywhere {0} points ({1} to {2}) more, with GPTQ {3}",
        (("13", rf"mixed instead of 3 bits everywhere: {N} points \({N} to {N}\)"),
         ("13", rf"mixed instead of 3 bits everywhere, GPTQ: {N} points")),
        lambda gain, low, high, gptq: low > 0 and gptq > 0,
    ),
    Claim(
        "2 bits are out of reach without help", "article", "13", "agrees",
        "to nearest {0} %; groups and AdaRound {1} %",
        (("13", rf"resnet, 2 bits\s+{N} %"), ("13", rf"resnet, 2 bits, AdaRound, groups\s+{N} %")),
        lambda nearest, best: nearest < 10 < 70 < best,
    ),
    Claim(
        "PTQ loses a little more than quantization-aware training", "article", "14", "agrees",
        "with 2-bit weights it is much: GPTQ {0} %, 200 steps of training {1} %, with the FP32 network as teacher {2} %, FP32 {3} %",
        (("14", rf"^GPTQ\s+{N} %"), ("14", rf"^labels\s+{N} %"), ("14", rf"^distillation\s+{N} %"),
         ("14", rf"^FP32\s+{N} %")),
        lambda ptq, labels, distilled, fp32: ptq < labels < fp32 and ptq < distilled < fp32,
    ),
    Claim(
        "Distillation from FP32 makes up for what PTQ loses", "article", "14", "agrees",
        "{0} points ({1} to {2}) more than labels where 1,000 pictures are all there is; but FP32 is not reached",
        (("14", rf"on 1,000 pictures: {N} points \({N} to {N}\)"),),
        lambda gain, low, high: low > 0,
    ),
    Claim(
        "TensorRT reorders Q and DQ to convert less often", "article", "15", "not tested here",
        "TensorRT needs a GPU; its rules for a file are checked (`deploy/tensorrt.py`)",
    ),
)  # fmt: skip
