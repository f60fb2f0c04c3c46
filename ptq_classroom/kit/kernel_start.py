"""Run by each kernel of the course: a name that is missing says "run the first cell".

`course.py lab` names this file in PYTHONSTARTUP, and `setup` puts a copy where the kernels of .venv
find it however they are started. Standard library only; without a notebook it does nothing, and it
leaves no name of its own behind.
"""


def _start():
    import sys

    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    names = "check hint solution reset predict quiz show term points learner figures"
    names += " np torch nn Tensor IntGrid"
    first = frozenset(names.split())  # what the first cells of the chapters import

    def explain(shell, kind, error, trace, tb_offset=None):  # noqa: ANN001
        shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
        if error.name in first:
            print(f"`{error.name}` comes from the notebook's first cell: run the first cell, then")
            print(
                "this one again (Run > Run All Above Selected Cell runs all that come before it)."
            )

    if shell:
        shell.set_custom_exc((NameError,), explain)


_start()
del _start
