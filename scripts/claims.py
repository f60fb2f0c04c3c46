"""The claims ledger: what two introductory texts say about quantization, beside what was measured.

    python scripts/claims.py            print it
    python scripts/claims.py --write    write docs/claims.md

Every number under "measured" is read from the outputs of an executed notebook (or from README's
table, which a benchmark writes), so that it can never differ from what a learner sees. Each verdict
is a condition on these numbers; where a new execution no longer meets it, `tests/test_claims.py`
fails and the sentence has to be thought over. The claims themselves stand in `claims_made.py`.
"""  # fmt: skip

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "claims.md"
INTRODUCTION = """\
# Claims, and what was measured

Two introductory texts on post-training quantization, an article and a notebook, stood at the
beginning of this course. Here is what they claim, in our words, beside what the chapters measured
on their own networks. A claim about another network is not proved or disproved by ours: "differs"
says that our numbers are others.

Written by `python scripts/claims.py --write` from the executed notebooks; a test holds it.
"""
VERDICTS = ("agrees", "differs", "refuted", "not tested here")


@dataclass(frozen=True)
class Claim:
    """One claim. source: "article" or "notebook", the two texts that the course grew out of.

    evidence: (place, pattern) with groups that are numbers; a place is a chapter ("03") or
    "README". shown: a format string for these numbers, in order. holds: what makes the verdict
    true.
    Without evidence `shown` says why it was not tested.
    """

    said: str
    source: str
    chapter: str
    verdict: str
    shown: str
    evidence: tuple[tuple[str, str], ...] = ()
    holds: Callable[..., bool] = lambda *_: True

    def numbers(self) -> list[float]:
        """What the patterns find. Raises LookupError, naming place and pattern, for none."""
        found: list[float] = []
        for place, pattern in self.evidence:
            match = re.search(pattern, printed(place), flags=re.MULTILINE | re.DOTALL)
            if match is None:
                raise LookupError(f"claim {self.said!r}: {place} prints nothing like {pattern!r}")
            found += [float(group.replace(",", "")) for group in match.groups()]
        return found

    def measured(self) -> str:
        """The sentence with its numbers."""
        return self.shown.format(*(f"{n:,.10g}" for n in self.numbers()))


@cache
def printed(place: str) -> str:
    """The text that a chapter's cells printed; README's text for "README"."""
    if place == "README":
        return (ROOT / "README.md").read_text(encoding="utf-8")
    (path,) = (ROOT / "notebooks").glob(f"{place}_*.ipynb")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "\n".join("".join(o["text"]) for o in outputs if o.get("name") == "stdout")


def ledger(claims: tuple[Claim, ...]) -> str:
    """The page: a table, and how many claims met which verdict."""
    rows = ["| claim | from | chapter | measured here | verdict |", "|---|---|---|---|---|"]
    for claim in claims:
        cells = (claim.said, claim.source, claim.chapter, claim.measured(), claim.verdict)
        rows.append(f"| {' | '.join(cells)} |")
    counts = ", ".join(f"{v}: {sum(c.verdict == v for c in claims)}" for v in VERDICTS)
    return "\n".join((INTRODUCTION, *rows, "", f"{len(claims)} claims. {counts}.", ""))


def main(arguments: list[str]) -> None:
    """Print the ledger, or write the page."""
    from claims_made import CLAIMS

    if arguments == ["--write"]:
        PAGE.write_text(ledger(CLAIMS), encoding="utf-8")
    else:
        print(ledger(CLAIMS))


if __name__ == "__main__":
    main(sys.argv[1:])
