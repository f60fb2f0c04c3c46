"""Checks of chapter 04: batch norm folded, Q/DQ pairs counted, modules left in training mode."""

from __future__ import annotations

from ptq_course.classroom.checks._ch04_fold import FOLD
from ptq_course.classroom.checks._ch04_modes import MODES
from ptq_course.classroom.checks._ch04_pairs import PAIRS

EXERCISES = [FOLD, PAIRS, MODES]
