"""Checks of chapter 08: integer products, int32 bias, fixed-point multiplier, integer addition."""

from __future__ import annotations

from ptq_classroom.chapters.ch08.addition import ADDITION
from ptq_classroom.chapters.ch08.multiplier import MULTIPLIER
from ptq_classroom.chapters.ch08.products import BIAS, LINEAR

EXERCISES = [LINEAR, BIAS, MULTIPLIER, ADDITION]
