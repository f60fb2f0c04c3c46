"""Checks of chapter 08: integer products, int32 bias, fixed-point multiplier, integer addition."""

from __future__ import annotations

from ptq_course.classroom.checks._ch08_addition import ADDITION
from ptq_course.classroom.checks._ch08_multiplier import MULTIPLIER
from ptq_course.classroom.checks._ch08_products import BIAS, LINEAR

EXERCISES = [LINEAR, BIAS, MULTIPLIER, ADDITION]
