"""Sentences for the course: a real encoder of the BERT family, and pairs of phrases to test it."""
