"""Exit quiz of chapter 07: when scales are chosen, and who needs that."""

from ptq_classroom.kit.quiz import Question

QUESTIONS = (
    Question(
        "In dynamic quantization, what is computed at run time?",
        right=(
            "activation scales, from the input at hand",
            ("weights were rounded beforehand; each layer finds the range of what it is given"),
        ),
        wrong=(
            (
                "the scales of both weights and activations",
                "weights do not change, so their scales are computed once, before",
            ),
            (
                "nothing but floating-point products",
                "the activations are rounded to integers in front of every product",
            ),
        ),
    ),
    Question(
        (
            "A batch holds one loud and many quiet rows, with one dynamic scale for all. "
            "What happens to the quiet rows?"
        ),
        right=(
            "they keep few codes, as with static min-max",
            "the loud row sets the step for everybody, whenever the scale is chosen",
        ),
        wrong=(
            ("each of them uses all codes", "only a scale for each row would give them that"),
            (
                "they are clipped to the range of the loud row",
                "nothing is clipped: small values fall onto the lowest codes",
            ),
        ),
    ),
    Question(
        ("Why can a linear layer's input have a scale for each row, though not for each column?"),
        right=(
            "a row's scale stands outside the sum over the columns",
            "each output row belongs to one input row, so its factor can wait until the end",
        ),
        wrong=(
            (
                "rows are fewer than columns",
                "their number is not the point; the place of the factor in the sum is",
            ),
            (
                "columns have equal ranges",
                (
                    "they may differ a lot, as outlier channels do; the sum forbids a factor for "
                    "each"
                ),
            ),
        ),
    ),
    Question(
        (
            "The static network and the dynamic one per tensor differ with an interval that"
            " contains zero. What did the run-time scale win?"
        ),
        right=(
            "nothing that these data show",
            "one scale for a whole batch behaves like min-max, even when it is fresh",
        ),
        wrong=(
            (
                "accuracy on the quietest of the rows",
                "that came with one scale for each row, not with the time of choosing",
            ),
            ("a smaller file", "all three schemes store the same integers"),
        ),
    ),
    Question(
        "Which scheme leaves the products in floating point?",
        right=(
            "weight-only",
            "its weights are decoded in front of the product, its activations never rounded",
        ),
        wrong=(
            (
                "dynamic",
                "its products are integer sums; only what a layer hands on is floating point",
            ),
            ("static", "its layers pass integers on and multiply integers"),
        ),
    ),
)
