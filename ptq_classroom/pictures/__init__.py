"""Emoji before a simulated camera, and the networks that were trained on them."""
