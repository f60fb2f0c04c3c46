"""Exercise checks, one file a chapter (`chNN.py`, `prep.py`), each with a list `EXERCISES`."""
