"""Rescue what rounding alone loses: one technique a file. Chapters 11 to 14."""
