"""Collect and decide: summaries of what was seen, and rules that turn them into a range.

Chapters 02, 03, 09. A summary (`summaries`, `histograms`) collects, a rule (`rules`, `kl`, `mse`)
decides, a calibrator (`calibrators`) is one of each under one name.
"""
