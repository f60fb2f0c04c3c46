"""Exit quiz of chapter 08: what each integer in a network means."""

from ptq_classroom.kit.quiz import Question

QUESTIONS = (
    Question(
        "The sum of (code - zero point) times weight code is 1,000. What is it worth?",
        right=(
            "1,000 times the input's scale times the weight's",
            "both scales stand before the sum: one step of the accumulator is their product",
        ),
        wrong=(
            (
                "1,000 times the output's scale",
                "that is the unit of the result, after requantization",
            ),
            (
                "nothing before the zero point of the output is added",
                "the sum already stands for a real number; the output's zero point comes last",
            ),
        ),
    ),
    Question(
        "With which code must padding be filled?",
        right=(
            "the input's zero point",
            "it stands for the real number 0, so that what lies outside adds nothing",
        ),
        wrong=(
            ("0", "code 0 stands for the lowest value of an affine grid, not for zero"),
            ("127", "that is the highest signed code, whatever the real number 0 is stored as"),
        ),
    ),
    Question(
        "Why does a bias of 32 bits cost hardly any accuracy?",
        right=(
            "its step is the tiny step of the accumulator",
            "one step is the product of two scales, far below one code of the output",
        ),
        wrong=(
            (
                "biases are small numbers",
                "their codes ran far beyond 8 bits; what is small is the step",
            ),
            ("it is added after requantization", "it is added before, in the accumulator's steps"),
        ),
    ),
    Question(
        "How is a real factor below 1 applied without floating point?",
        right=(
            "by an integer product and a shift to the right",
            "m holds 31 bits of the factor, the shift puts the binary point back",
        ),
        wrong=(
            (
                "by a division through the nearest integer",
                "that would hit only factors of the form 1/k",
            ),
            (
                "by a shift alone, to the nearest power of two",
                "that would be wrong by up to two fifths of the factor",
            ),
        ),
    ),
    Question(
        ("A sum does not fit into a narrow accumulator. Which way to fail is better, and why?"),
        right=(
            "saturating, since a large sum stays large",
            "wrapping around turns it into one of the other sign",
        ),
        wrong=(
            (
                "wrapping around, since later products may bring it back",
                "that helps only while the sum is still running; the final sum must fit",
            ),
            (
                "neither: both change every decision",
                "measured, most decisions stayed, and more of them with saturation",
            ),
        ),
    ),
)
