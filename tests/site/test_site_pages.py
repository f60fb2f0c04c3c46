"""The whole page, built once, in Chromium without a network: every page, wide and narrow.

All in one file, so that it is built once where several processes share the tests.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from web_page import npm

from ptq_classroom.kit.glossary import find

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "npm"
NAMES = [file.stem for file in sorted((ROOT / "notebooks").glob("*.ipynb"))]
CHAPTERS = [*(n for n in NAMES if n.startswith("prep")), *(n for n in NAMES if n[0].isdigit())]
WIDE, NARROW = 1280, 400
# Lazy pictures are fetched first; then what is looked at on every page, and axe's serious faults.
LOOK = """async ([width, where, rules]) => {
  const images = [...document.images];
  for (const image of images) image.loading = 'eager';
  await Promise.all(images.map(image => image.decode().catch(() => null)));
  const faults = !rules ? [] : (await axe.run(where, {
    preload: false, resultTypes: ['violations'], rules,
  })).violations.filter(v => ['serious', 'critical'].includes(v.impact)).map(
    v => `${v.id}: ${v.nodes.length} times, as in ${v.nodes[0].html.slice(0, 200)}`);
  return {
    broken: images.filter(i => i.naturalWidth === 0).map(i => i.outerHTML.slice(0, 200)),
    mute: images.filter(i => !i.alt.trim()).map(i => i.outerHTML.slice(0, 200)),
    wider: document.documentElement.scrollWidth - width,
    faults,
  };
}"""


class Site(NamedTuple):
    """Where the built page lies, its address, and whether MathJax and the widgets' script came."""

    folder: Path
    address: str
    scripts: bool


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        """A test's own output is enough."""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("a page") / "site"
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "scripts")])}
    built = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "build_site.py"), str(folder)],
        capture_output=True, text=True, env=variables, check=False,
    )  # fmt: skip
    print(built.stdout)
    assert built.returncode == 0, built.stderr[-4000:]
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        scripts = (folder / "_static" / "npm" / "mathjax").is_dir()
        yield Site(folder, f"http://127.0.0.1:{server.server_port}/", scripts)
        server.shutdown()


@pytest.fixture(scope="module")
def axe(site: Site) -> str:
    """The address of axe-core, fetched as MathJax is and served beside the page."""
    folder = npm.fetch(npm.AXE, CACHE)
    if folder is None:
        pytest.skip("axe-core could not be fetched from npm's registry")
    shutil.copy(folder / "axe.min.js", site.folder)
    return f"{site.address}axe.min.js"


class Tab:
    """A page of Chromium that sees this server only, and remembers what went wrong."""

    def __init__(self, chromium: Any, site: Site, width: int, **options: Any) -> None:
        self.site, self.width, self.problems = site, width, []
        self.context = chromium.new_context(
            viewport={"width": width, "height": 900},
            proxy={"server": "http://127.0.0.1:9", "bypass": "127.0.0.1"},  # elsewhere: no answer
            **options,
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.page.on("console", lambda said: said.type == "error" and self.note(said.text))
        self.page.on("pageerror", lambda error: self.note(str(error)))
        self.page.on("requestfailed", self.unanswered)

    def note(self, problem: str) -> None:
        self.problems.append(f"{self.page.url.removeprefix(self.site.address)}: {problem[:300]}")

    def unanswered(self, asked: Any) -> None:
        if asked.failure != "net::ERR_ABORTED":  # which is what leaving a page does
            self.note(f"{asked.failure}: {asked.url[:200]}")

    def open(self, name: str) -> None:
        self.page.goto(self.site.address + name, wait_until="load")

    def arrives(self, name: str) -> None:
        self.page.wait_for_url(self.site.address + name, wait_until="load")


@pytest.fixture(scope="module")
def wide(chromium: Any, site: Site) -> Iterator[Tab]:
    tab = Tab(chromium, site, WIDE)
    yield tab
    tab.context.close()


@pytest.fixture(scope="module")
def narrow(chromium: Any, site: Site) -> Iterator[Tab]:
    tab = Tab(chromium, site, NARROW)
    yield tab
    tab.context.close()


def pages(site: Site, code: bool = True) -> list[str]:
    """Every page; without those that show a module's code where `code` is False."""
    every = [file.relative_to(site.folder).as_posix() for file in site.folder.rglob("*.html")]
    return sorted(name for name in every if code or not name.startswith("_modules/ptq_course"))


def look(tab: Tab, names: list[str], axe: str = "") -> list[str]:
    """Open these pages and look at each; returns what is wrong, page by page."""
    found: list[str] = []
    for name in names:
        tab.open(name)
        # A module's code has thousands of words, whose colours are looked at once for all (below),
        # and what stands around it stands around every page.
        code = name.startswith("_modules/ptq_course")
        rules = {"color-contrast": {"enabled": not code}}
        if axe:
            tab.page.add_script_tag(url=axe)
        seen = tab.page.evaluate(
            LOOK, [tab.width, "article" if code else "html", rules if axe else None]
        )
        if seen.pop("wider") > 0:
            found.append(f"{name}: wider than {tab.width} pixels")
        found += [f"{name}: {kind}: {one}" for kind, many in seen.items() for one in many]
    found += tab.problems
    tab.problems.clear()
    return found


def test_every_page_is_whole_and_open_to_everyone(wide, axe, site):
    """No console error, no broken or mute picture, nothing cut off, no serious fault for axe."""
    names = pages(site)
    assert len(names) > 150
    assert look(wide, names, axe) == []


def test_every_page_is_whole_on_a_telephone(narrow, site):
    assert look(narrow, pages(site, code=False)) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_of_code_can_be_read(chromium, site, axe, scheme):
    """One word of each kind that the highlighting tells apart on any page."""
    text = "".join((site.folder / name).read_text(encoding="utf-8") for name in pages(site))
    kinds = sorted(set(re.findall(r'<span class="([a-z]{1,2}[a-z0-9]?)">', text)))
    assert len(kinds) > 20
    tab = Tab(chromium, site, WIDE, color_scheme=scheme)
    tab.open("_modules/ptq_course/grids/affine.html")
    tab.page.add_script_tag(url=axe)
    faults = tab.page.evaluate(
        """kinds => {
          document.querySelector('.highlight pre').innerHTML =
            kinds.map(kind => `<span class="${kind}">${kind}</span>`).join(' ');
          return axe.run('article', {preload: false, runOnly: ['color-contrast']}).then(
            r => r.violations.flatMap(v => v.nodes.map(n => n.html)));
        }""",
        kinds,
    )
    assert faults == []
    tab.context.close()


@pytest.mark.parametrize(("width", "scheme"), [(WIDE, "dark"), (NARROW, "light")])
def test_one_page_of_each_kind_is_open_to_everyone_otherwise_too(
    chromium, site, axe, width, scheme
):
    """In the dark, and on a telephone."""
    kinds = [
        "index.html", "notebooks/03_kl_calibration.html", "widgets.html", "glossary.html",
        "api/grids.html", "_modules/ptq_course/grids/affine.html", "docs/recipes.html",
        "TEACHING.html",
    ]  # fmt: skip
    tab = Tab(chromium, site, width, color_scheme=scheme)
    assert look(tab, kinds, axe) == []
    picture = "getComputedStyle(document.querySelector('img.picture')).backgroundColor"
    tab.open("widgets.html")
    assert tab.page.evaluate(picture) == "rgb(255, 255, 255)"
    tab.context.close()


def test_every_chapter_is_reached_by_its_links(wide):
    """From the contents beside the landing page, and from chapter to chapter with "next"."""
    page = wide.page
    wide.open("index.html")
    beside = page.locator('.sidebar-tree a[href^="notebooks/"]')
    found = beside.evaluate_all("links => links.map(a => a.getAttribute('href'))")
    assert found == [f"notebooks/{name}.html" for name in CHAPTERS]
    beside.first.click()
    for name, after in zip(CHAPTERS, [*CHAPTERS[1:], None], strict=True):
        wide.arrives(f"notebooks/{name}.html")
        notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
        title = "".join(notebook["cells"][0]["source"]).splitlines()[0].removeprefix("# ")
        assert page.locator("h1").inner_text().strip(" #¶") == title
        if after:
            page.locator("a.next-page").click()
    page.locator("a.prev-page").click()
    wide.arrives(f"notebooks/{CHAPTERS[-2]}.html")
    assert wide.problems == []


def test_the_chapter_map_leads_to_every_chapter_on_a_telephone(narrow):
    for name in CHAPTERS:
        narrow.open("index.html")
        narrow.page.locator(f'article table a[href="notebooks/{name}.html"]').click()
        narrow.arrives(f"notebooks/{name}.html")
    assert narrow.problems == []


def test_solutions_and_proofs_are_folded_until_asked_for(wide):
    wide.open("notebooks/01_affine_quantization.html")
    page = wide.page
    solution = page.get_by_text("qparams_solution", exact=False).first
    assert not solution.is_visible()
    line = page.locator("summary", has_text="Show the solution")
    assert line.count() == 3
    assert page.locator("summary", has_text="Show the proof").count() > 10
    assert page.locator("details[open]").count() == 0
    line.first.focus()
    page.keyboard.press("Enter")
    assert solution.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_term_explains_itself_by_keyboard(chromium, site, axe, scheme):
    tab = Tab(chromium, site, WIDE, color_scheme=scheme)
    tab.open("notebooks/01_affine_quantization.html")
    page, tip = tab.page, tab.page.locator("#term-tip")
    assert not tip.is_visible()
    first = page.locator("a.term").first
    first.focus()
    page.keyboard.press("Tab")
    term = page.locator("a.term:focus")
    known = find(term.inner_text())
    assert tip.is_visible()
    assert tip.get_attribute("role") == "tooltip"
    for words in (known.term, known.zh, known.definition):
        assert words in tip.inner_text()
    assert term.get_attribute("aria-describedby") == "term-tip"
    page.add_script_tag(url=axe)
    contrast = "axe.run('#term-tip', {runOnly: ['color-contrast']}).then(r => r.violations.length)"
    assert page.evaluate(contrast) == 0
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    assert term.get_attribute("aria-describedby") is None
    first.hover()
    tip.hover()  # it stays while it is pointed to
    assert find(first.inner_text()).definition in tip.inner_text()
    page.mouse.move(5, 890)
    assert not tip.is_visible()
    page.keyboard.press("Enter")  # the focus is where it was: on to the glossary
    page.wait_for_url("**/glossary.html#term-*")
    tab.context.close()


def test_a_tip_stays_on_a_telephone_s_screen(narrow):
    narrow.open("notebooks/01_affine_quantization.html")
    terms = narrow.page.locator("article a.term")
    for number in range(0, terms.count(), 4):
        terms.nth(number).focus()
        box = narrow.page.locator("#term-tip").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= NARROW


def test_search_finds_a_term_in_its_chapter_and_in_the_glossary(wide):
    wide.open("search.html?q=zero+point")
    found = wide.page.locator("#search-results li a")
    found.nth(5).wait_for()
    wide.page.wait_for_function("() => /finished|found/i.test(document.body.innerText)")
    leads = found.evaluate_all("links => links.map(a => a.getAttribute('href'))")
    for name in ("notebooks/01_affine_quantization.html", "glossary.html"):
        assert any(lead.startswith(name) for lead in leads)


def test_formulas_are_set_and_widgets_are_drawn_but_not_to_be_moved(wide, site):
    wide.open("notebooks/01_affine_quantization.html")
    page = wide.page
    assert page.locator(".lab-note").count() == 1
    if not site.scripts:
        pytest.skip("MathJax and the widgets' script could not be fetched from npm's registry")
    page.locator("mjx-container").first.wait_for()
    assert r"\operatorname" not in page.locator("article").inner_text()
    page.locator(".lab-widget .widget-html-content img[alt]").wait_for()
    assert page.locator(".lab-widget[inert]").count() == 1
    page.locator(".lab-widget input").first.focus()
    assert page.locator(".lab-widget :focus").count() == 0


def test_code_can_be_copied_and_scrolled_by_keyboard(narrow):
    narrow.open("notebooks/01_affine_quantization.html")
    page = narrow.page
    cells = page.locator("div.cell_input pre").count()
    assert page.locator("div.cell_input button.copybtn").count() == cells > 20
    wide_code = page.locator("div.cell_input pre[tabindex='0']").first
    wide_code.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("e => e.scrollLeft > 0", arg=wide_code.element_handle())
