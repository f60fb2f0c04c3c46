"""Why does the quantized model lose accuracy, and where? Chapters 06 and 10.

compare          signal-to-noise ratio of every layer, alone and accumulated (`comparison`;
                 `walks` runs both networks in step, `parts` says what their parts are)
ablate           weights only, activations only, both (`ablation`; `scores` pairs the examples)
sensitivity      one layer at a time
diagnose         an engineer's questions in order (`questions`), each with what was found
                 (`answers`) and a recipe to paste (`recipes`)
"""

from ptq_course.diagnosis.ablation import ablate, sensitivity
from ptq_course.diagnosis.answers import Answer, Diagnosis
from ptq_course.diagnosis.comparison import Comparison, compare
from ptq_course.diagnosis.questions import diagnose
from ptq_course.diagnosis.scores import top1_on

__all__ = [
    "Answer",
    "Comparison",
    "Diagnosis",
    "ablate",
    "compare",
    "diagnose",
    "sensitivity",
    "top1_on",
]
