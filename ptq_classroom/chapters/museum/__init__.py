"""Pipelines that run, look plausible, and are wrong in one place: for chapter 16."""
