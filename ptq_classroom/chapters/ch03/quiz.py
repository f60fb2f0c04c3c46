"""Exit quiz of chapter 03: P, Q, the search, and what KL cannot see."""

from ptq_classroom.kit.quiz import Question

QUESTIONS = (
    Question(
        "Where do the clipped outliers go when P and Q of a window are made?",
        right=(
            "into the last bin of P, and not into Q",
            "clipping puts them on the edge; that Q lacks them is the price of clipping",
        ),
        wrong=(
            (
                "into the last bin of both",
                "then cutting would cost nothing: with as many bins as levels, Q would equal P",
            ),
            (
                "nowhere: both leave them out",
                "then P would not say that they are clipped, and a short window would look free",
            ),
        ),
    ),
    Question(
        "A bin of P holds values, and Q is 0 there. What is the divergence?",
        right=("infinite", "Q calls impossible what does happen: such a window cannot win"),
        wrong=(
            ("0, since 0 log 0 counts as 0", "that is the other case: p = 0, not q = 0"),
            (
                "large, but finite",
                "p log(p / 0) has no bound; a small constant in Q would only hide it",
            ),
        ),
    ),
    Question(
        "Why does the curve of the divergence rise again at its right end?",
        right=(
            "the groups become so wide that the crowd shares one",
            "nothing is clipped there, and few levels are left for where the values are",
        ),
        wrong=(
            (
                "more and more outliers are piled onto the last bin",
                "that happens at the left end; at the right one nothing is clipped",
            ),
            (
                "there are too few values in such a long window to count",
                "a longer window holds more values, in the end all of them",
            ),
        ),
    ),
    Question(
        "You go from 4 bits to 8. What does KL do with its threshold?",
        right=(
            "it moves out",
            "with more levels a longer window is fine enough; KL knows their number",
        ),
        wrong=(
            (
                "it stays: the histogram is the same",
                "the histogram is, but the number of groups in a window is not",
            ),
            (
                "it moves in: finer levels want a shorter window",
                "the levels are finer at the same length, so less is lost by a longer window",
            ),
        ),
    ),
    Question(
        "A network predicts distances with a long, dense tail. Why is KL a bad choice there?",
        right=(
            "it counts clipped values, and does not see how far away they lie",
            "a value clipped from ten thresholds away is an error of nine of them",
        ),
        wrong=(
            (
                "it needs labels, and distances have none",
                "KL looks at a histogram only; no rule here needs labels",
            ),
            (
                "a histogram cannot hold values that are so large",
                "its bins grow with the range; the trouble is what the rule cuts off",
            ),
        ),
    ),
)
