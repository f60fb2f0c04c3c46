"""Checks of the prep self-test: seven small things that the course takes for granted."""

from ptq_classroom.chapters.prep.networks import EXERCISES as _NETWORKS
from ptq_classroom.chapters.prep.numbers import EXERCISES as _NUMBERS

EXERCISES = [*_NUMBERS, *_NETWORKS]
