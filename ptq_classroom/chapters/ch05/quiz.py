"""Exit quiz of chapter 05: who shares a scale, and what it costs."""

from ptq_classroom.kit.quiz import Question

QUESTIONS = (
    Question(
        (
            "A layer's quietest channel reaches a hundredth of the loudest. One 8-bit scale"
            " serves both. What is left for the quiet one?"
        ),
        right=(
            "about one code on each side of zero",
            "127 / 100 is a little more than one code: rounding leaves it nearly nothing",
        ),
        wrong=(
            (
                "all 256 codes, since the grid is the layer's",
                "the grid is shared, and its step is set by the loudest channel alone",
            ),
            (
                "half of its codes",
                "the step grows with the ratio of the ranges, here a hundred, not two",
            ),
        ),
    ),
    Question(
        (
            "Why can a convolution's weights have a scale for each output channel at no "
            "cost in arithmetic?"
        ),
        right=(
            "the scale stands outside the integer sum",
            "each output has one such scale, and it multiplies the finished sum",
        ),
        wrong=(
            (
                "the scales are rounded to powers of two",
                "they are any real numbers; what matters is where in the sum they stand",
            ),
            (
                "the runtime multiplies every product by its scale in floating point",
                "then nothing would be left of integer arithmetic: the scale waits outside",
            ),
        ),
    ),
    Question(
        "And why do activations not get a scale for each input channel?",
        right=(
            "it would change inside the sum over the inputs",
            "a factor that differs from product to product cannot be pulled out of the sum",
        ),
        wrong=(
            (
                "their ranges hardly differ from channel to channel",
                "they do differ, and often by much; the integer sum forbids it all the same",
            ),
            (
                "nobody knows them before the network runs",
                "calibration would measure them like any other range; the sum is the obstacle",
            ),
        ),
    ),
    Question(
        "What is a group, in per-group quantization?",
        right=(
            "a run of neighbours in one row of the weight",
            "the row is cut along the inputs, and each piece has its own scale",
        ),
        wrong=(
            (
                "several output channels that share a scale",
                "that would be coarser than per-channel; a group is finer",
            ),
            (
                "the weights that a grouped convolution keeps apart",
                "that is another use of the word: here it is about who shares a scale",
            ),
        ),
    ),
    Question(
        (
            "At 8 bits per-tensor and per-channel differ by +0.2 points, with an interval "
            "from -0.3 to +0.7. What follows?"
        ),
        right=(
            "these pictures do not tell them apart",
            "zero lies inside the interval; with fewer bits the same comparison decided",
        ),
        wrong=(
            (
                "granularity does not matter",
                "here, at 8 bits, it is not shown to; at 4 bits it decided everything",
            ),
            (
                "per-channel is better by 0.2 points",
                "the interval holds zero and losses as well: that is no finding",
            ),
        ),
    ),
)
