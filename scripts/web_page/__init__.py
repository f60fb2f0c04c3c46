"""The course as a web page: `python course.py site` builds it with Sphinx (build.py).

Not called `site`: Python's own module of that name starts every interpreter.
"""
