"""Apply: a network in floating point that rounds as integers would. Chapters 05, 06, 07, 09."""
