"""What stops the building of the page."""

from __future__ import annotations


class PageError(Exception):
    """A fault of the course's text or of a built page: one line a finding, each with its place."""

    def __init__(self, findings: list[str]) -> None:
        self.findings = findings
        super().__init__("\n".join(findings))
