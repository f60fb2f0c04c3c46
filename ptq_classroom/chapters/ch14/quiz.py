"""Exit quiz of chapter 14: when rounding alone is not enough."""

from ptq_classroom.kit.quiz import Question

QUESTIONS = (
    Question(
        "Why can a network not be trained through rounding as it is?",
        right=(
            "its gradient is zero nearly everywhere",
            "a step function: no small change of a weight changes the output",
        ),
        wrong=(
            (
                "its output is an integer, which has no gradient in PyTorch",
                "the output of fake quantization is a real number; the trouble is the flat steps",
            ),
            (
                "its gradient is infinite everywhere",
                "only at the steps, which are never met exactly",
            ),
        ),
    ),
    Question(
        "What does the straight-through estimator hand back for a value that was clipped?",
        right=("nothing", "a clipped value does not move the output, whatever it does"),
        wrong=(
            ("the gradient, unchanged", "then a value would be pushed further and further outside"),
            ("the gradient times the scale", "the scale cancels: divided once and multiplied once"),
        ),
    ),
    Question(
        "What does distillation need that training on labels does not?",
        right=("the FP32 network", "it answers for the labels, which are then not needed"),
        wrong=(
            ("more pictures", "fewer: a soft answer says more about a picture than one class does"),
            ("labels for every calibration picture", "none: the teacher answers in their place"),
        ),
    ),
    Question(
        "Why is quantization-aware training not always the first choice, if it wins?",
        right=(
            "it takes data, time and a pipeline that PTQ does without",
            "PTQ needs a few hundred inputs and minutes: try it first, train if it fails",
        ),
        wrong=(
            ("its networks are slower", "they have the same codes and run in the same kernels"),
            ("its files are larger", "codes and scales are as many as before"),
        ),
    ),
    Question(
        "Training starts from GPTQ's codes, and not from the nearest ones. What for?",
        right=(
            "a better start needs fewer steps",
            "at 2 bits the nearest codes know nothing: a short run does not come far",
        ),
        wrong=(
            (
                "GPTQ's codes have a gradient",
                "no codes have one; the float weights behind them are trained",
            ),
            (
                "the nearest codes cannot be trained at all",
                "they can, but it takes longer to get anywhere",
            ),
        ),
    ),
)
