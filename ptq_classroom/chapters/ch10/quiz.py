"""Exit quiz of chapter 10: overlap, one grid for two units, sweeps, budgets."""

from ptq_classroom.kit.quiz import Question

QUESTIONS = (
    Question(
        "Box a is 4 wide and 2 high, box b the same, moved right by 2. What is their IoU?",
        right=("1/3", "the intersection is 4, the union 8 + 8 - 4 = 12"),
        wrong=(
            ("1/2", "that is the intersection over one box; the union is 12"),
            ("1/4", "the union is not 16: the common part would count twice"),
        ),
    ),
    Question(
        "Boxes in pixels and probabilities are joined in one tensor with one scale. What happens?",
        right=(
            "the probabilities are left with three or four different values",
            "the scale has to reach 96 pixels: a step is about 0.4, a probability at most 1",
        ),
        wrong=(
            (
                "the boxes become useless",
                "a step of about 0.4 pixels moves a box little; the probabilities suffer",
            ),
            (
                "nothing, as long as every layer before it has a good scale",
                "the join rounds once more, whatever came in",
            ),
        ),
    ),
    Question(
        "A sweep rounds one layer at a time. What do its losses add up to?",
        right=(
            "to nothing in particular: errors of several layers may add, cancel or amplify",
            "read them as suspects, and measure what you build from them",
        ),
        wrong=(
            (
                "to the loss of the network with all layers rounded",
                "only if no layer noticed what the others do",
            ),
            (
                "to the same sum as leaving out one layer at a time",
                "the two sweeps ask different questions and disagree",
            ),
        ),
    ),
    Question(
        "Which layer should have the next free bytes?",
        right=(
            "the one that avoids the most loss for each byte",
            "a small sensitive layer is cheap; a large one may cost more than it avoids",
        ),
        wrong=(
            (
                "the one with the largest loss",
                "if it is also the largest layer, several others together may avoid more",
            ),
            (
                "the last one",
                "often a good guess; but the sweep is there so that you need not guess",
            ),
        ),
    ),
    Question(
        "What does keeping a layer in FP16 change when the network runs on a CPU?",
        right=(
            "the file, not the time",
            "x86 CPUs mostly compute FP16 as FP32, and values are converted on the way in and out",
        ),
        wrong=(
            (
                "the layer runs twice as fast as in FP32",
                "on a GPU or an Arm CPU perhaps; most x86 CPUs have no such arithmetic",
            ),
            (
                "nothing at all",
                "the weights of that layer take two bytes each, half of FP32 and twice INT8",
            ),
        ),
    ),
)
