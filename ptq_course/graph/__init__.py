"""The traced graph of a network, and the plan that says who owns a scale. Chapters 04 and 06.

trace     a model's Python becomes one graph (`tracing`), in one way of writing: functions
          become layers (`functional`), attention becomes products (`attention`, `masks`,
              `transformer`)
kinds     what each operation does to integers (`kinds`), and what this graph's do (`reading`)
plan      which values become integers and share a scale, which layers (`planning`)
"""

from ptq_course.graph.choosing import check_float_layers
from ptq_course.graph.copying import copied, plain_module, prepared_copy
from ptq_course.graph.kinds import WEIGHTED_MODULES, Kind
from ptq_course.graph.planning import LayerSite, Plan, Value, kinds_of, plan
from ptq_course.graph.tracing import optional_arguments, required_inputs, trace

__all__ = [
    "WEIGHTED_MODULES",
    "Kind",
    "LayerSite",
    "Plan",
    "Value",
    "check_float_layers",
    "copied",
    "kinds_of",
    "optional_arguments",
    "plain_module",
    "plan",
    "prepared_copy",
    "required_inputs",
    "trace",
]
