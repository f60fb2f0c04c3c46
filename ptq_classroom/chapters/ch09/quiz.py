"""Exit quiz of chapter 09: how many pictures, and which."""

from ptq_classroom.kit.quiz import Question

QUESTIONS = (
    Question(
        "Under min-max, what happens to the range when pictures are added to the set?",
        right=(
            "it grows or stays, and never settles by itself",
            "a maximum does not fall; it ends where the camera ends",
        ),
        wrong=(
            (
                "it converges like a mean",
                "a mean averages outliers away, a maximum keeps each of them",
            ),
            (
                "it shrinks, since outliers weigh less",
                "min-max does not weigh: one value is enough",
            ),
        ),
    ),
    Question(
        (
            "A mode has a share of 1 %. About how many pictures bring the chance to miss it "
            "down to 5 %?"
        ),
        right=("300", "3 / share is the rule of thumb, from 0.99 to the power of n"),
        wrong=(
            ("100", "after 1 / share pictures more than a third of all sets still miss it"),
            ("20", "five per cent of risk is not one picture in twenty: that chance would be 82 %"),
        ),
    ),
    Question(
        (
            "A set of 100 pictures was collected. With percentile ranges all pictures are "
            "as good as with 1,000. Is the set large enough?"
        ),
        right=(
            "for all pictures yes, for the flash pictures it was not",
            "rare modes are outvoted in an average; ask for them by name",
        ),
        wrong=(
            ("yes, accuracy decides", "an average over all pictures hides those that come rarely"),
            (
                "no, calibration needs thousands in any case",
                "the percentile had settled with a handful, on all pictures",
            ),
        ),
    ),
    Question(
        "Some calibration pictures carry wrong labels. What changes?",
        right=("nothing", "calibration looks at values and never at answers"),
        wrong=(
            (
                "the ranges move towards the wrong class",
                "ranges know no classes: the scales came out equal to the last digit",
            ),
            ("only the last layer's range", "no layer's range depends on a label"),
        ),
    ),
    Question(
        ("Why does one pass over the data suffice for a thousand different calibration sets?"),
        right=(
            "summaries of single pictures merge",
            "the summary of a set is a merge of small objects, with no pixel read again",
        ),
        wrong=(
            (
                "neighbouring sets share most of their pictures",
                "they may share none; merging works for any choice",
            ),
            (
                "the network is run once for every set",
                "it is not run again at all: only summaries are merged",
            ),
        ),
    ),
)
