"""Exit quiz of chapter 11: factors, limits, and means."""

from ptq_classroom.kit.quiz import Question

QUESTIONS = (
    Question(
        "Why may a channel between two layers be divided by a factor and multiplied again?",
        right=(
            "a ReLU passes a positive factor on",
            "relu(s x) = s relu(x) for s > 0, so the second layer can undo what the first did",
        ),
        wrong=(
            (
                "a convolution does not change when its weights are scaled",
                "it does, its output is scaled; the next layer undoes that",
            ),
            (
                "the batch norm behind it removes every factor",
                "it is folded already: there is no batch norm left that could",
            ),
        ),
    ),
    Question(
        "A channel has the ranges 8 where it is made and 0.5 where it is read. Which factor s?",
        right=(
            "4",
            "8 / 4 = 2 and 0.5 * 4 = 2: both ranges are equal",
        ),
        wrong=(
            ("16", "8 / 16 = 0.5 and 0.5 * 16 = 8: the ranges have changed places"),
            ("8", "8 / 8 = 1, but 0.5 * 8 = 4: now the other side is the louder one"),
        ),
    ),
    Question(
        "What is wrong with putting a ReLU in place of a ReLU6 to equalize a network?",
        right=(
            "where values exceed 6 it is another network",
            "few values do, but the network was trained with the cut: measure before you go on",
        ),
        wrong=(
            (
                "nothing, the two compute the same",
                "they do only below 6; what lies above was cut and now is not",
            ),
            (
                "a ReLU does not pass a factor on",
                "a ReLU does; it is the ReLU6 whose limit would have to go along",
            ),
        ),
    ),
    Question(
        "Why are biases corrected layer by layer, and not all at once?",
        right=(
            "a layer's shift contains the shifts of the layers before it",
            "corrected all at once, an early error is taken back again in every later layer",
        ),
        wrong=(
            (
                "it is faster",
                "it is slower; but only so does each layer see inputs that are right already",
            ),
            (
                "the shifts of different layers have nothing to do with each other",
                "if they had not, all at once would do; they are passed on from layer to layer",
            ),
        ),
    ),
    Question(
        "Two networks have the same FP32 outputs. One survives INT8, the other does not. Why?",
        right=(
            "their weights differ: a function has many forms, and a grid fits only some of them",
            "random factors between layers leave FP32 alone and ruin a scale for a whole layer",
        ),
        wrong=(
            (
                "one of them was calibrated on the wrong data",
                "rounding weights needs no data, and it alone can ruin one of the two",
            ),
            (
                "that cannot happen",
                "it did in this chapter: right FP32 outputs say nothing about the grid",
            ),
        ),
    ),
)
