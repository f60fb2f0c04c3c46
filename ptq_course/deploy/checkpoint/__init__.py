"""Quantized checkpoints: integer codes in safetensors, below 8 bits packed. Chapters 07, 15."""

from ptq_course.deploy.checkpoint.report import size_report
from ptq_course.deploy.checkpoint.storage import load, save

__all__ = ["load", "save", "size_report"]
