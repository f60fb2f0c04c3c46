"""Exit quiz of chapter 12: outlier channels, who clips them, and two ways around."""

from ptq_classroom.kit.quiz import Question

QUESTIONS = (
    Question(
        "Why does the encoder lose so much when a range rule clips?",
        right=(
            "the loudest values sit in the same few channels of every sentence",
            "clipping them changes every sentence in the same way: they are no accidents",
        ),
        wrong=(
            (
                "clipped values become zero",
                "they become the end of the range, which is still loud",
            ),
            (
                "clipping makes the step larger",
                "it makes the step smaller: that is what it is for",
            ),
        ),
    ),
    Question(
        "One channel of an activation is 30 times as loud as the median channel. What does one "
        "8-bit scale leave the median channel?",
        right=(
            "about 8 of its codes",
            "255 codes over the loud channel's range leave 255 / 30 for a range of a thirtieth",
        ),
        wrong=(
            ("all of its codes", "the scale is shared: the loud channel sets the step"),
            (
                "about 128 of its codes",
                "that would be a loud channel of twice the range, and not of thirty times",
            ),
        ),
    ),
    Question(
        "SmoothQuant divides a channel by s and multiplies weights by s. What does that cost "
        "the weights?",
        right=(
            "coarser scales; alpha shares the loss",
            "a loud column of weights makes the rows' scales coarser: at alpha 1 they pay all",
        ),
        wrong=(
            (
                "nothing: they are stored in 32 bits",
                "they have 8 bits like the activations",
            ),
            (
                "nothing: each column has a scale of its own",
                "each row has one, the output channel; s goes along the columns",
            ),
        ),
    ),
    Question(
        "Dynamic quantization computes the range of each token. Which outlier is it no help for?",
        right=(
            "a loud channel, which is there in every token",
            "each token then has a range set by that channel: its own scale is coarse, too",
        ),
        wrong=(
            (
                "a loud token among quiet ones",
                "just for these it was made: every token has its own scale",
            ),
            (
                "a sentence that calibration never saw",
                "nothing was calibrated: the range is found at run time",
            ),
        ),
    ),
    Question(
        "What does a rotation do to an outlier channel?",
        right=(
            "it spreads it over many channels",
            "the weights undo the rotation, so the output stays; no single channel stands out",
        ),
        wrong=(
            (
                "it clips the channel without a loss",
                "nothing is clipped: all the power is still there, in other places",
            ),
            (
                "it moves the channel to another place",
                "that would be a permutation, and as loud as before",
            ),
        ),
    ),
)
