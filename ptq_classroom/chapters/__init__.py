"""One folder a chapter: exercises, figures, widget."""
