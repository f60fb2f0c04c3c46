"""Links between notebooks and to other files of the course lead somewhere."""

import json
import re

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|<img[^>]+src=[\"']([^\"']+)[\"']")


def links(text):
    """Where the links and pictures of a Markdown text lead, within the course only."""
    found = [one or other for one, other in LINK.findall(text)]
    places = [place.split("#")[0] for place in found if not re.match(r"[a-z]+:", place)]
    return {place for place in places if place and not place.startswith("attachment")}


def planned(readme):
    """The numbers of the chapters that the README says are still to come."""
    return set(re.findall(r"^\| (\d\d) \|[^|]*\*\(planned\)\*", readme, flags=re.MULTILINE))


def test_the_search_finds_links():
    text = "[a](02_b.ipynb#c) [w](https://x.org/y) [d](../data/README.md) ![p](i/p.png) [e](#f)"
    assert links(text) == {"02_b.ipynb", "../data/README.md", "i/p.png"}
    assert planned("| 09 | done | x |\n| 10 | later *(planned)* | y |\n") == {"10"}


def test_every_link_of_a_notebook_leads_somewhere_or_to_a_planned_chapter(root):
    coming = planned((root / "README.md").read_text(encoding="utf-8"))
    notebooks = sorted((root / "notebooks").glob("*.ipynb"))
    seen, dead = 0, []
    for notebook in notebooks:
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] != "markdown":
                continue
            for place in links("".join(cell["source"])):
                seen += 1
                if not (notebook.parent / place).exists() and place[:2] not in coming:
                    dead.append(f"{notebook.name}: {place}")
    assert dead == []
    assert seen > 20
