#!/usr/bin/env python3
"""The course in two commands; Python's standard library is enough to start.

    python course.py lab       set up what is missing, then open JupyterLab
    python course.py test      run every test and every notebook
    python course.py progress  say what is passed, chapter by chapter
    python course.py site      build the course as a web page, into build/site
    python course.py doctor    say what is installed, what is missing, and what
                               this processor can do
    python course.py setup     only set up
    python course.py bundle    fetch everything once, for rooms without internet

`python course.py lab --help` says more of a command; so for each of them.
"""

# Only syntax that every Python knows, down to 2.7: an old one must get as far as the message below.
from __future__ import print_function

import os
import sys

ROOT = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(ROOT, "scripts"))

from bootstrap import pins  # noqa: E402  (found through the line above)


def main(arguments):
    for stream in (sys.stdout, sys.stderr):
        # A console may lack a character: then "?", no traceback. From Python 3.7 on.
        getattr(stream, "reconfigure", lambda errors: None)(errors="replace")
    refusal = pins.refusal(sys.version_info[:2], sys.platform, pins.machine())
    if refusal and arguments[:1] != ["doctor"]:
        print(refusal, file=sys.stderr)
        return 2
    if not pins.serves(sys.version_info[:2]):  # `doctor` itself needs a Python of today
        print(refusal, file=sys.stderr)
        return 2
    from bootstrap import commands

    return commands.run(arguments, str(__doc__))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
