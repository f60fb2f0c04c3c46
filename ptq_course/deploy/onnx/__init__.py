"""Q/DQ files in ONNX: how they are written (`writing`) and read (`reading`). Chapters 00, 15."""

from ptq_course.deploy.targets import TARGETS
from ptq_course.errors import needs

with needs("onnx"):
    from ptq_course.deploy.onnx.writing import export
    from ptq_course.deploy.session import Session, session

__all__ = ["TARGETS", "Session", "export", "session"]
