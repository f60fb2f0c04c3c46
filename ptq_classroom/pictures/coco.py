"""mAP by pycocotools, the field's own program: the numbers that others report.

Lin, Maire, Belongie and others, "Microsoft COCO: Common Objects in Context", 2014.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

from torch import Tensor

from ptq_classroom.pictures.boxes import Detections
from ptq_classroom.pictures.detection import DETECTED, Scenes


def mean_average_precision(found: Detections, scenes: Scenes) -> tuple[float, float]:
    """mAP at an overlap of 0.5, and its mean over 0.5, 0.55, ..., 0.95; both in [0, 1]."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if len(found.scores) == 0:
        return 0.0, 0.0  # pycocotools refuses an empty list
    with contextlib.redirect_stdout(io.StringIO()):  # it reports each step
        truth: Any = COCO()  # its types name files, where it also takes what files hold
        truth.dataset = {
            "info": {},
            "images": [{"id": i} for i in range(len(scenes))],
            "categories": [{"id": i, "name": name} for i, name in enumerate(DETECTED)],
            "annotations": [
                {"id": i + 1, "iscrowd": 0, "area": box[2] * box[3], **row, "bbox": box}
                for i, (row, box) in enumerate(
                    zip(_rows(scenes), _sides(scenes.boxes), strict=True)
                )
            ],
        }
        truth.createIndex()
        results = [
            {**row, "bbox": box, "score": score}
            for row, box, score in zip(
                _rows(found), _sides(found.boxes), found.scores.tolist(), strict=True
            )
        ]
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[1]), float(evaluation.stats[0])


def _rows(given: Scenes | Detections) -> list[dict[str, int]]:
    pairs = zip(given.scene.tolist(), given.labels.tolist(), strict=True)
    return [{"image_id": scene, "category_id": label} for scene, label in pairs]


def _sides(boxes: Tensor) -> list[list[float]]:
    """left, top, width, height: what COCO stores."""
    return [[x, y, right - x, bottom - y] for x, y, right, bottom in boxes.double().tolist()]
