"""Figures: `base` (style, `show`), `pieces` (what several chapters draw), one file a chapter."""
