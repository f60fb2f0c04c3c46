"""Exit quiz of chapter 04: what folding keeps, what it saves, and what it costs."""

from ptq_classroom.kit.quiz import Question

QUESTIONS = (
    Question(
        "Why can a batch norm be folded into the convolution before it?",
        right=(
            "in evaluation mode it multiplies and adds constants, channel by channel",
            "a convolution followed by a factor and a shift is a convolution",
        ),
        wrong=(
            (
                "it is so small that leaving it out hardly changes the output",
                "it is not left out: its constants go into the weights and the bias",
            ),
            (
                "both of them are computed by the same kernel of the library",
                "that is a matter of speed; the algebra needs only constants",
            ),
        ),
    ),
    Question(
        "What happens to a layer without a bias when a batch norm is folded into it?",
        right=("it gets one", "beta minus the scaled mean has to go somewhere"),
        wrong=(
            ("it stays without", "then the shift of the batch norm would be lost"),
            (
                "it cannot be folded",
                "a missing bias counts as zero, and the fold computes a new one",
            ),
        ),
    ),
    Question(
        "Two operations read the value between a convolution and its batch norm. What does "
        "`fuse` do?",
        right=(
            "nothing: that batch norm stays",
            "the other reader needs the value as it was before the batch norm",
        ),
        wrong=(
            (
                "it folds, and both read the folded value",
                "the second reader would get another number than before",
            ),
            (
                "it copies the convolution for the second reader",
                "that would be right, but it doubles the work: it does not do that",
            ),
        ),
    ),
    Question(
        "Why does a merged ReLU need no Q/DQ pair of its own?",
        right=(
            "the integers are clamped anyway, and it moves the lower end",
            "a convolution's output is clamped to its range; ReLU makes that begin at zero",
        ),
        wrong=(
            (
                "a ReLU does not change any value of its input",
                "it sets the negative ones to zero: the clamp does that for it",
            ),
            (
                "its output is not rounded, so it stays in floating point all the way",
                "it is an integer like its neighbours; one pair serves both operations",
            ),
        ),
    ),
    Question(
        "Folding left the FP32 output as it was. Why can INT8 be worse afterwards?",
        right=(
            "each channel got its own factor: ranges drift apart",
            "with one scale for the layer, the loudest channel sets everyone's step",
        ),
        wrong=(
            (
                "the fold itself loses precision",
                "its error is about 1e-7 of the output, far below a step of 8 bits",
            ),
            (
                "there are more values to round after folding than before it",
                "there are fewer: that is what folding wins",
            ),
        ),
    ),
)
