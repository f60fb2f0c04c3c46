"""Deployment: a file that a runtime executes with integers (chapters 00 and 15)."""
