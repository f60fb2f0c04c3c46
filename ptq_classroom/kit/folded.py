"""Notebooks as HTML with solutions, proofs and answers folded.

    python -m nbconvert --to ptq_classroom.kit.folded.FoldedHTML notebooks/01_*.ipynb

JupyterLab folds a cell whose metadata say `jupyter.source_hidden`; nbconvert's own `--to html`
knows neither that key nor a tag without options, and prints the solution under the exercise.
Here such a cell is a <details>: closed, opened by a click or by the keyboard, without a script.
Pictures get the alt text of their metadata, which nbconvert's template leaves out too.
"""

from __future__ import annotations

from typing import Any

from nbconvert.exporters import HTMLExporter

TEMPLATE = """\
{%- extends 'lab/index.html.j2' -%}
{%- macro summary(cell) -%}
{%- set tags = cell.metadata.get('tags', []) -%}
{%- set number = cell.metadata.get('ptq', {}).get('exercise', '') -%}
<summary class="ptq-fold">
{%- if 'solution' in tags -%} Solution {{ number }}
{%- elif 'quiz-answers' in tags -%} Answers
{%- elif 'proof' in tags -%} Proof
{%- else -%} Code {%- endif -%}
</summary>
{%- endmacro -%}
{%- block html_head_css -%}
{{ super() }}
<style>
summary.ptq-fold {
  cursor: pointer; width: fit-content; padding: 0.2em 0.6em;
  margin: 0.4em 0 0.4em calc(var(--jp-cell-prompt-width, 64px) + 13px);
  border: 1px solid #767676; border-radius: 4px; font-family: sans-serif; font-size: 14px;
}
</style>
{%- endblock html_head_css -%}
{%- block codecell -%}
{%- if cell.metadata.get('jupyter', {}).get('outputs_hidden') -%}
<details>{{ summary(cell) }}{{ super() }}</details>
{%- else -%}{{ super() }}{%- endif -%}
{%- endblock codecell -%}
{%- block input_group -%}
{%- set hidden = cell.metadata.get('jupyter', {}) -%}
{%- if hidden.get('source_hidden') and not hidden.get('outputs_hidden') -%}
<details>{{ summary(cell) }}{{ super() }}</details>
{%- else -%}{{ super() }}{%- endif -%}
{%- endblock input_group -%}
{%- block data_png -%}
{%- set alt = output | get_metadata('alt', 'image/png') or '' -%}
{{ super() | replace('<img src=', '<img alt="' ~ (alt | escape_html) ~ '" src=', 1) }}
{%- endblock data_png -%}
"""


class FoldedHTML(HTMLExporter):
    """nbconvert's page, with <details> around what the metadata hide, and with alt texts."""

    export_from_notebook = None  # not in JupyterLab's menu

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.raw_template = TEMPLATE
