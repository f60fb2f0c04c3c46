"""Sphinx's settings for the page of the course; build.py fills the folder in which they lie."""

from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = HERE / "_static" / "npm"

project = "Post-training quantization, chapter by chapter"
html_title = "PTQ course"
author = "the PTQ course's authors"
language = "en"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "web_page.extension",
]
nb_execution_mode = "off"  # what is shown is what was committed, and tests execute it
nb_merge_streams = True
nb_render_text_lexer = "none"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # those of PyTorch are its own
autodoc_typehints = "signature"
viewcode_follow_imported_members = False  # else a copy of Python's own functools
add_module_names = False
toc_object_entries = False  # the list of modules is long enough, and a page builds twice as fast
copybutton_selector = "div.cell_input pre, div.highlight-python pre, div.highlight-sh pre"
nb_ipywidgets_js: dict[str, dict[str, str]] = {}
if (SCRIPTS / "html-manager").is_dir():
    nb_ipywidgets_js = {"npm/html-manager/dist/embed.js": {"defer": "defer"}}
mathjax_path = "npm/none.js"
if (SCRIPTS / "mathjax").is_dir():
    mathjax_path = "npm/mathjax/es5/tex-chtml.js"
    # The menu would fetch speech rules from elsewhere.
    mathjax3_config = {"options": {"enableMenu": False}}

html_theme = "furo"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["course.css"]
html_js_files = ["terms.js", "course.js"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"top_of_page_buttons": []}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
templates_path = []
exclude_patterns = ["_static"]
