"""The exhibits: each file holds one pipeline, small enough to be read whole."""
