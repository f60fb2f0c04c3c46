"""Exit quiz of chapter 15: files, fusions, and runtimes that disagree."""

from ptq_classroom.kit.quiz import Question

QUESTIONS = (
    Question(
        "What does a Q/DQ file tell the runtime?",
        right=(
            "which values lie on which grid",
            "the operators are ordinary ones; the runtime decides what to compute with integers",
        ),
        wrong=(
            (
                "which integer kernel to run where",
                "no kernel is named in it: the runtime fuses what it can and leaves the rest",
            ),
            (
                "the integer inputs and outputs of every operator",
                "between DQ and Q the operators of the file read and write floating point",
            ),
        ),
    ),
    Question(
        "A convolution reads a DQ and has integer weights, and a GELU reads its output. What "
        "does ONNX Runtime do?",
        right=(
            "it computes the convolution in floating point",
            "QLinearConv returns codes, so a Q must follow the convolution directly",
        ),
        wrong=(
            (
                "it computes the convolution with integers, since inputs and weights are codes",
                "its kernel returns codes as well, and here nobody says on which grid",
            ),
            (
                "it fuses the GELU into the convolution",
                "only clamps such as ReLU are fused; this runtime has no integer GELU",
            ),
        ),
    ),
    Question(
        "Why can the file made for ONNX Runtime not go to TensorRT?",
        right=(
            "its activations are uint8 with zero points",
            "TensorRT reads int8 with zero point 0 only",
        ),
        wrong=(
            ("its weights have a scale per channel", "TensorRT reads those as well"),
            ("TensorRT does not read ONNX", "it does; the grids are what it refuses"),
        ),
    ),
    Question(
        "Two runtimes give different answers for a few pictures. What follows?",
        right=(
            "each was allowed to fuse and round in its own way: measure both",
            "a file fixes grids, not the order of sums and not every rounding",
        ),
        wrong=(
            ("one of them has a bug", "possible, but fused sums explain it just as well"),
            (
                "nothing: answers never agree in INT8",
                "file and simulation agreed nearly always where both round in the same places",
            ),
        ),
    ),
    Question(
        "An INT8 file is a quarter as large as the FP32 file and no faster. What do you look at "
        "first?",
        right=(
            "the operators that are executed",
            "a Conv among them is a convolution in floating point with its weights decoded first",
        ),
        wrong=(
            ("the accuracy", "it can be perfect while everything runs in floating point"),
            ("the size again", "integer weights make a file small whatever computes with them"),
        ),
    ),
)
