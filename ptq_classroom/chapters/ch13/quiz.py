"""Exit quiz of chapter 13: rounding for the output, codebooks, and what bits cost."""

from ptq_classroom.kit.quiz import Question

QUESTIONS = (
    Question(
        "Why is rounding each weight to nearest not the best for a layer's output?",
        right=(
            "errors add up in the output, and can cancel there",
            "to nearest keeps each error small; up or down together makes their sum small",
        ),
        wrong=(
            (
                "the nearest value is not the one with the least error of the weight",
                "it is; but the output adds up the errors of many weights",
            ),
            (
                "the scale is wrong",
                "AdaRound and GPTQ keep the scale, and still lose far less",
            ),
        ),
    ),
    Question(
        "A layer of 4-bit weights has a 16-bit scale for each group of 32. Bits per weight?",
        right=("4.5", "16 bits shared by 32 weights are half a bit for each"),
        wrong=(
            ("4", "the scales are stored as well"),
            ("20", "the 16 bits are shared by all weights of the group"),
        ),
    ),
    Question(
        "What can a codebook from k-means do that a uniform grid cannot?",
        right=(
            "put its values where the weights are",
            "many of them near zero, few at the ends; the price is a table to look up",
        ),
        wrong=(
            (
                "be multiplied as it is by an integer kernel",
                "it cannot: its values are floats, looked up before the product",
            ),
            (
                "use fewer bits for each weight",
                "16 values take 4 bits, whether they are evenly spaced or not",
            ),
        ),
    ),
    Question(
        "What do AdaRound and GPTQ need from the calibration pictures?",
        right=(
            "the second moments of each layer's inputs",
            "they say which inputs occur together; the output's error is a quadratic form in them",
        ),
        wrong=(
            (
                "the right label of each picture, to train on",
                "no label is used; only inputs of layers",
            ),
            (
                "the range of each activation",
                "that is for rounding activations; here only weights are rounded",
            ),
        ),
    ),
    Question(
        "With 2-bit weights a network answers at random. What would you try first?",
        right=(
            "more scales, and GPTQ or AdaRound on top",
            "each helps alone, and together they brought the residual network most of the way back",
        ),
        wrong=(
            (
                "retraining, since no rounding can help",
                "the same grid held a far better rounding; retraining is for what then remains",
            ),
            (
                "weight ranges with the least squared error",
                "the weights' squared error is not the output's: at 3 bits it was worse",
            ),
        ),
    ),
)
