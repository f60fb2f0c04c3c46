"""Exit quiz of chapter 17: what a release has to promise."""

from ptq_classroom.kit.quiz import Question

QUESTIONS = (
    Question(
        "You have chosen among twelve versions by their accuracy on the practice pictures. Which "
        "accuracy goes onto the card?",
        right=(
            "one measured on other pictures",
            "the winner of twelve was lucky, too: on new pictures it is a little worse",
        ),
        wrong=(
            ("the one on the practice pictures", "it chose the winner, so it flatters it"),
            (
                "the mean of all twelve versions on the practice pictures",
                "that is the accuracy of nothing that is shipped",
            ),
        ),
    ),
    Question(
        "The interval of the loss runs from -2.9 to -0.3 points; 2.5 are allowed. What now?",
        right=(
            "not accepted",
            "the loss may be larger than what is allowed: more pictures, or a better version",
        ),
        wrong=(
            (
                "accepted, since the mean is inside",
                "the rule asks what is sure, not what is likely",
            ),
            (
                "accepted, since the interval does not hold zero",
                "that says that there is a loss, not that it is small enough",
            ),
        ),
    ),
    Question(
        "Which calibration pictures does a camera at dusk ask for?",
        right=("its own, unlabelled", "ranges come from what the network will see"),
        wrong=(
            (
                "those that the network was trained on, because it knows them",
                "their values are brighter: ranges for them waste codes on light that never comes",
            ),
            ("its own, with labels", "nobody reads the labels while ranges are chosen"),
        ),
    ),
    Question(
        "What does a regression test of a quantized network compare?",
        right=(
            "the new file with the old one, on the same examples",
            "paired, so that a small change can be seen",
        ),
        wrong=(
            (
                "the loss during calibration",
                "there is none: calibration minimizes nothing that could be watched",
            ),
            (
                "two accuracies on two days' pictures",
                "other pictures differ by more than the release does",
            ),
        ),
    ),
    Question(
        "Why does the card say what stays in floating point?",
        right=(
            "another runtime may have no kernel for it",
            "and it costs time where it stands between integer layers",
        ),
        wrong=(
            (
                "because it is always the cause of the loss",
                "in floating point nothing is rounded there",
            ),
            (
                "because it makes the file larger",
                "activations are in no file; it is speed and support that suffer",
            ),
        ),
    ),
)
