"""Widgets: `base` holds `Explorer`, one file a chapter (`chNN_*.py`) the chapter's own."""
