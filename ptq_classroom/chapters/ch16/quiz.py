"""Exit quiz of chapter 16: symptoms, tests, and what a test is worth."""

from ptq_classroom.kit.quiz import Question

QUESTIONS = (
    Question(
        "What is a good test of a quantization pipeline run on?",
        right=(
            "an input made so that the promise can be broken",
            "a value beyond the range, an empty batch, a loud channel: chosen, not met",
        ),
        wrong=(
            (
                "the test pictures, and nothing else",
                "many bugs cost one point there, and nobody sees them",
            ),
            (
                "random numbers, as many as possible",
                "what breaks a promise is rare among them: values far beyond the range, say",
            ),
        ),
    ),
    Question(
        "A test passes on the broken pipeline and on the repaired one. What does it show?",
        right=("nothing about this bug", "it does not look where the two differ"),
        wrong=(
            (
                "that the bug does no harm",
                "harm is what a symptom measures; this test sees neither",
            ),
            ("that both pipelines are right", "one of them is not: the test does not see it"),
        ),
    ),
    Question(
        "Codes are cast to int8 and clamped afterwards. Which values come out wrong?",
        right=(
            "those beyond the range, which wrap around",
            "130 becomes -126 in the cast, and that lies inside the clamp",
        ),
        wrong=(
            ("the negative ones", "inside the range they are cast as they are"),
            (
                "all of them, by at most one step",
                "inside the range nothing changes; beyond it the error is as large as the range",
            ),
        ),
    ),
    Question(
        "Every layer reports the same scale. Where do you look first?",
        right=(
            "whether any data reached the calibrators",
            "a default that was never replaced is the same everywhere",
        ),
        wrong=(
            (
                "whether the network was trained long enough",
                "trained layers have different activations, whatever their quality",
            ),
            ("whether the range rule clips", "a rule gives each layer a range of its own"),
        ),
    ),
    Question(
        "The float network is worse after calibration than before. How can that be?",
        right=(
            "it was left in train mode",
            "then batch norm moves its running statistics with every batch that it sees",
        ),
        wrong=(
            ("observing rounds the weights", "observing reads values; it writes none"),
            (
                "calibration data were too few",
                "few data give bad ranges, and change nothing in the float network",
            ),
        ),
    ),
)
