"""Exit quiz of chapter 00: what was lost, what was won, and what a difference is worth."""

from ptq_classroom.kit.quiz import Question

QUESTIONS = (
    Question(
        "A network falls from 90 % to 89 % of 1,000 pictures. What do the two numbers tell you?",
        right=(
            "ten more pictures were lost than gained",
            "the difference of two accuracies is the net of the flips, and nothing else",
        ),
        wrong=(
            (
                "ten pictures changed their answer",
                "it may be ten lost and none gained, or sixty lost and fifty gained: count flips",
            ),
            (
                "quantization costs this network one point",
                "on other pictures it would be another number: look at the paired interval",
            ),
        ),
    ),
    Question(
        "The quantized PyTorch module is slower than FP32. Why?",
        right=(
            "it simulates: it rounds to the grid and goes on in floating point",
            "rounding is work on top; integers are computed only by the exported file",
        ),
        wrong=(
            (
                "integers are slower than floating point on a CPU",
                "no integer was multiplied: the module computes in FP32, with rounding on top",
            ),
            (
                "calibration still runs in the background",
                "calibration ended before `convert`; the module rounds with fixed scales",
            ),
        ),
    ),
    Question(
        "What does calibration need?",
        right=(
            "typical inputs",
            "it watches which values flow; ranges need neither labels nor gradients",
        ),
        wrong=(
            (
                "typical inputs and their labels",
                "labels are needed to validate; calibration gives the same ranges without them",
            ),
            (
                "the training set and an optimizer",
                "nothing is trained: a few hundred typical inputs are enough",
            ),
        ),
    ),
    Question(
        "The paired 95 % interval of a change runs from -0.4 to +1.1 points. What may you say?",
        right=(
            "these pictures do not decide whether it gained or lost",
            "zero lies inside: both directions agree with what was seen",
        ),
        wrong=(
            (
                "it gained, since most of the interval is above zero",
                "a change of zero agrees with these pictures too: that is what the interval says",
            ),
            (
                "quantization changed nothing",
                "it may have changed a point either way; these pictures are too few to tell",
            ),
        ),
    ),
    Question(
        "The file of the INT8 network is somewhat larger than a quarter of the FP32 file. Why?",
        right=(
            "scales, biases and the graph itself take room besides the weights",
            "only weights shrink to a quarter; the rest stays, and Q/DQ nodes come in addition",
        ),
        wrong=(
            (
                "the FP32 weights are kept beside the integers",
                "then it would be larger than before: each weight is stored once, as an integer",
            ),
            (
                "8 bits cannot hold a quarter of 32 bits",
                "8 is exactly a quarter of 32; what is not a weight makes the difference",
            ),
        ),
    ),
)
