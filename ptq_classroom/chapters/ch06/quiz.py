"""Exit quiz of chapter 06: the five steps, where the loss comes from, and what a report needs."""

from ptq_classroom.kit.quiz import Question

QUESTIONS = (
    Question(
        "Of the five steps, which ones look at the calibration data?",
        right=(
            "calibrating only",
            (
                "preparing, converting and validating use the model and test data; calibrating "
                "watches the values"
            ),
        ),
        wrong=(
            (
                "all of them",
                "a model is prepared and its weights are rounded without a single picture",
            ),
            (
                "calibrating and validating",
                "validating on the data that chose the ranges would flatter the result",
            ),
        ),
    ),
    Question(
        "W8A32 loses 0.1 points and W32A8 loses 3.0. What do you try first?",
        right=(
            "another range rule for the activations",
            "the activations cost nearly everything, and a rule costs nothing at run time",
        ),
        wrong=(
            (
                "more bits for the weights",
                "8-bit weights alone lost 0.1 points: there is nothing to win",
            ),
            (
                "a scale for each output channel of the weights",
                "that mends weights, and these are not what costs here",
            ),
        ),
    ),
    Question(
        "A layer has 40 dB isolated and 13 dB cumulative. What is wrong with it?",
        right=(
            "nothing: it received what earlier layers had spoiled",
            "isolated, with exact inputs, it is clean; the damage came in with its input",
        ),
        wrong=(
            ("its weights have too few bits", "then the isolated ratio would be low as well"),
            (
                "its own activation range is too wide",
                "its input is rounded in the isolated measurement too, and 40 dB came out",
            ),
        ),
    ),
    Question(
        "Why is `fork` cheap?",
        right=(
            "it shares the collected statistics and only decides anew",
            ("the data are seen once; ranges for other rules and bits are computed from summaries"),
        ),
        wrong=(
            ("it calibrates on fewer pictures", "it does not look at any picture again"),
            (
                "it copies the quantized weights of the first version",
                "each fork decides its own scales; the statistics are what is shared",
            ),
        ),
    ),
    Question(
        ("A report says: INT8 loses 0.4 points, interval -1.2 to +0.3. Which verdict is honest?"),
        right=(
            "no drop is shown on these pictures",
            "the interval reaches zero: the data allow that nothing was lost",
        ),
        wrong=(
            ("the network lost 0.4 points", "that is the middle of an interval which holds zero"),
            (
                "quantization is free for this network",
                "it may also have lost 1.2 points: not shown is not the same as absent",
            ),
        ),
    ),
)
