"""Exit quiz of chapter 01: scale, zero point, saturation, symmetric or affine."""

from ptq_classroom.kit.quiz import Question

QUESTIONS = (
    Question(
        "A range from -1 to 3 is put on the codes 0 to 15. What is the scale?",
        right=("4 / 15", "sixteen marks have fifteen gaps, and the range is 4 wide"),
        wrong=(
            ("4 / 16", "sixteen is the number of marks; between them are fifteen gaps"),
            ("3 / 15", "3 is the upper end; the range from -1 to 3 is 4 wide"),
        ),
    ),
    Question(
        "Why is a code clamped before it is stored as int8, and not afterwards?",
        right=(
            "the cast wraps around: 130 becomes -126",
            "after the cast the damage is done: -126 lies inside the grid",
        ),
        wrong=(
            (
                "clamping integers is slower than clamping floating-point numbers",
                "speed is not the point: a code that wrapped around can no longer be told",
            ),
            (
                "the order does not matter, it is a convention",
                "130 clamped first is 127; cast first it is -126, and clamping keeps that",
            ),
        ),
    ),
    Question(
        "The range of a feature map is 2 to 6, and it will be padded with zeros. Which range is "
        "quantized?",
        right=("0 to 6", "zero needs a code of its own; the padding is full of it"),
        wrong=(
            (
                "2 to 6, since no value lies outside of it",
                "the padding does: it would take the code that means 2",
            ),
            ("-6 to 6", "that is the symmetric range: it wastes the half that is never used"),
        ),
    ),
    Question(
        "How far can a value move when it is quantized and converted back?",
        right=(
            "half a scale inside the range, any distance outside",
            "rounding is bounded by half a gap; clipping has no bound",
        ),
        wrong=(
            (
                "half a scale, wherever the value lies on the number line",
                "a value beyond the range is moved to its end, however far that is",
            ),
            ("one scale", "it goes to the nearest mark, and that is at most half a gap away"),
        ),
    ),
    Question(
        "What does a signed symmetric grid cost on values that are never negative?",
        right=("one bit, about 6 dB", "half of its codes stand for values that never come"),
        wrong=(
            (
                "nothing: zero is exact on either grid",
                "zero is, but the step is twice as wide as it need be",
            ),
            ("half of the values", "no value is lost; half of the codes are never used"),
        ),
    ),
)
