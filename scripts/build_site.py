"""Builds the web page of the course; `python course.py site` runs this in the environment."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages beside this folder

from web_page.build import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
