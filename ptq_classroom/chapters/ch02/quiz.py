"""Exit quiz of chapter 02: where a range comes from, and when each rule fails."""

from ptq_classroom.kit.quiz import Question

QUESTIONS = (
    Question(
        "One value in twenty thousand lies ten times as far out as all others. What does min-max "
        "cost the others, in 8 bits?",
        right=("about 20 dB", "the step grows tenfold, the power of the error a hundredfold"),
        wrong=(
            ("about 10 dB", "ten times the step is a hundred times the power of the error"),
            (
                "next to nothing: it is one value in twenty thousand",
                "min-max asks how large a value is, not how many there are",
            ),
        ),
    ),
    Question(
        "Why is a percentile taken from a histogram and not from the values?",
        right=(
            "the memory stays the same however much data flows",
            "the counts of the bins are kept, never the values",
        ),
        wrong=(
            (
                "a histogram is more accurate than sorting the values",
                "it is off by up to a bin; what it saves is memory",
            ),
            (
                "percentiles are defined on histograms only",
                "sorted values have percentiles too, exact ones; they need all the values",
            ),
        ),
    ),
    Question(
        "0.05 % of the values are outliers, all above. From which percentile on does the bulk "
        "recover?",
        right=("below 99.95", "then all the outliers lie outside, and no longer set the range"),
        wrong=(
            ("below 99.5", "that clips ten times as many values as there are outliers"),
            ("above 99.95", "then some outliers stay inside, and one of them is enough"),
        ),
    ),
    Question(
        "A percentile is lowered further and further. What happens to the accuracy?",
        right=(
            "it has a top: finer steps help until clipping costs more",
            "two errors pull at one threshold; rare kinds of picture pay first",
        ),
        wrong=(
            (
                "it grows: the steps become finer and finer for the rest",
                "what is clipped becomes an error, and there is more and more of it",
            ),
            (
                "it falls from the start, since every clipped value is an error",
                "so is every wide step: with outliers inside, the bulk pays for them",
            ),
        ),
    ),
    Question(
        "What does calibration keep of a batch of activations?",
        right=(
            "a summary: extremes, or counts of bins",
            "a rule then decides from it; one summary serves several rules",
        ),
        wrong=(
            ("the activations themselves", "they fill the memory: a summary is kept instead"),
            (
                "the scale of the batch",
                "scales of batches cannot be joined into one; summaries can",
            ),
        ),
    ),
)
