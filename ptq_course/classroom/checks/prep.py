"""Checks of the prep self-test: seven small things that the course takes for granted."""

from ptq_course.classroom.checks._prep_networks import EXERCISES as _NETWORKS
from ptq_course.classroom.checks._prep_numbers import EXERCISES as _NUMBERS

EXERCISES = [*_NUMBERS, *_NETWORKS]
