"""The finished pages, read again: links lead somewhere, pictures are there and have words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from web_page.errors import PageError


@dataclass
class Page(HTMLParser):
    """What of one page is looked at: its anchors, links, pictures and scripts."""

    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    mute: list[str] = field(default_factory=list)  # pictures without words

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser for each start of an element."""
        given = dict(attrs)
        self.anchors.update(filter(None, (given.get("id"), given.get("name"))))
        if tag == "a" and given.get("href") is not None:
            self.links.append(given["href"] or "")
        if tag in ("img", "script") and given.get("src"):
            self.loads.append(given["src"] or "")
        if tag == "link" and given.get("rel") in ("stylesheet", "icon"):
            self.loads.append(given.get("href") or "")
        if tag == "img" and not (given.get("alt") or "").strip():
            self.mute.append((given.get("src") or "")[:60])


def read(file: Path) -> Page:
    """One page, parsed."""
    page = Page()
    page.feed(file.read_text(encoding="utf-8"))
    return page


def check(folder: Path, from_elsewhere: Iterable[str] = ()) -> int:
    """How many pages there are, after reading all; raises PageError with every finding.

    from_elsewhere: beginnings of addresses of the network that a page may load something from.
    """
    pages = {file: read(file) for file in sorted(folder.rglob("*.html"))}
    findings = []
    for file, page in pages.items():
        place = file.relative_to(folder).as_posix()
        findings += [f"{place}: the picture {src} has no alt text" for src in page.mute]
        for target in page.links:
            if problem := dead(target, file, pages):
                findings.append(f"{place}: the link to {target!r} {problem}")
        for source in page.loads:
            parts = urlsplit(source)
            if parts.scheme or parts.netloc:
                if parts.scheme != "data" and not source.startswith(tuple(from_elsewhere)):
                    findings.append(f"{place}: loads {source[:80]!r} from the network")
            elif not (file.parent / unquote(parts.path)).is_file():
                findings.append(f"{place}: {source!r}, which it loads, is not there")
    if findings:
        raise PageError(sorted(set(findings)))
    return len(pages)


def dead(target: str, file: Path, pages: dict[Path, Page]) -> str:
    """Why a link leads nowhere; "" where it leads somewhere, or out of the site."""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return ""
    other = (file.parent / unquote(parts.path)).resolve() if parts.path else file.resolve()
    page = pages.get(other)
    if page is None:
        return "" if other.is_file() else "leads to no file"
    anchor = unquote(parts.fragment)
    if anchor and anchor not in page.anchors:
        return "leads to no such place of its page"
    return ""
