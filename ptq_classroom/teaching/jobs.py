"""Several judges at work at the same time; one that dies is started again."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ptq_classroom.teaching.sandbox import Limits

COURSE = Path(__file__).resolve().parents[2]


class JudgeDied(Exception):
    """A judge ended in the middle of its work."""


class _Judge:
    """A judge's process; `ask` sends an order and waits for the answer."""

    def __init__(self, settings: dict):
        self._settings = settings
        self._process: subprocess.Popen | None = None
        self.protection: dict[str, Any] = {}

    def ask(self, **order: Any) -> dict:
        if self._process is None:
            self._start()
        return self._say(order)

    def close(self) -> None:
        if self._process is not None:
            self._process.stdin.close()  # type: ignore[union-attr]
            self._process.wait(30)
            self._process = None

    def _start(self) -> None:
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
        paths = [str(COURSE), os.environ.get("PYTHONPATH", "")]
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ptq_classroom.teaching.judge"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables, text=True,
            encoding="utf-8",
        )  # fmt: skip
        self.protection = self._say(self._settings)

    def _say(self, message: dict) -> dict:
        assert self._process is not None
        try:
            print(json.dumps(message), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()  # type: ignore[union-attr]
        except OSError:
            line = ""
        if not line:
            self._process.kill()
            self._process.wait()
            self._process = None
            raise JudgeDied
        return json.loads(line)


class Jobs:
    """Some judges that work at the same time."""

    def __init__(self, count: int, limits: Limits, seed: int):
        settings = {"seconds": limits.seconds, "megabytes": limits.megabytes, "seed": seed}
        self._judges = [_Judge(settings) for _ in range(count)]

    def protection(self) -> dict:
        """What protects, as a judge has tried it."""
        return next(judge.protection for judge in self._judges if judge.protection)

    def run(
        self, orders: Iterable[tuple[Any, dict]], done: Callable[[Any, dict | None], None]
    ) -> None:
        """Carry out orders; done(key, answer) in this thread. answer is None where a judge died."""
        waiting: queue.Queue = queue.Queue()
        finished: queue.Queue = queue.Queue()
        count = 0
        for order in orders:
            waiting.put(order)
            count += 1

        def work(judge: _Judge) -> None:
            while True:
                try:
                    key, order = waiting.get_nowait()
                except queue.Empty:
                    return
                finished.put((key, _answer(judge, order)))

        for judge in self._judges[: max(1, count)]:
            threading.Thread(target=work, args=(judge,), daemon=True).start()
        for _ in range(count):
            done(*finished.get())

    def close(self) -> None:
        """Let the judges end."""
        for judge in self._judges:
            judge.close()


def _answer(judge: _Judge, order: dict) -> dict | None:
    """A judge's answer, asked twice where it dies; a bug of ours must not stop the class."""
    for _ in range(2):
        try:
            return judge.ask(**order)
        except JudgeDied:
            continue
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}
    return None
