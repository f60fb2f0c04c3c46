"""Checks of chapter 04: batch norm folded, Q/DQ pairs counted, modules left in training mode."""

from __future__ import annotations

from ptq_classroom.chapters.ch04.fold import FOLD
from ptq_classroom.chapters.ch04.modes import MODES
from ptq_classroom.chapters.ch04.pairs import PAIRS

EXERCISES = [FOLD, PAIRS, MODES]
