"""Why does the quantized model lose accuracy, and where? Chapters 06 and 10.

compare          signal-to-noise ratio of every layer, alone and accumulated (`comparison`;
                 `walks` runs both networks in step, `parts` says what their parts are)
ablate           weights only, activations only, both (`ablation`; `scores` pairs the examples)
one_at_a_time    one layer quantized at a time, `all_but_one` all but one (`sensitivity`, `sizes`)
mixed_precision  a width for each layer, by bytes or by accuracy (`mixed`, `allocation`)
reach            the remedies in order of their cost (`ladder`; `widening` and `noise` choose layers
                 that stay wider), each a `Recipe` (`remedies`) that is measured (`meter`,
                 `runtime`), remembered (`journal`) and reported (`log`)
diagnose         an engineer's questions in order (`questions`), each with what was found
                 (`answers`) and a recipe to paste (`recipes`)
"""

from ptq_course.diagnosis.ablation import ablate
from ptq_course.diagnosis.answers import Answer, Diagnosis
from ptq_course.diagnosis.comparison import Comparison, compare
from ptq_course.diagnosis.mixed import mixed_precision
from ptq_course.diagnosis.questions import diagnose
from ptq_course.diagnosis.reach import reach
from ptq_course.diagnosis.scores import OfSet, top1_on
from ptq_course.diagnosis.sensitivity import all_but_one, one_at_a_time, sensitivity

__all__ = [
    "Answer",
    "Comparison",
    "Diagnosis",
    "OfSet",
    "ablate",
    "all_but_one",
    "compare",
    "diagnose",
    "mixed_precision",
    "one_at_a_time",
    "reach",
    "sensitivity",
    "top1_on",
]
