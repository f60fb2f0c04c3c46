"""Collect and decide: summaries of what was seen, and rules that turn them into a range.

Chapters 02, 03, 09. A calibrator (`calibrators`) is a summary that collects (`summaries`,
`histograms`) and a range rule that decides (`rules`, `kl`, `mse`) under one name; a sweep
(`sweeps`) is every range that a rule looked at, with its score; a search
(`simulation.range_search`) tries whole rules on a network and keeps the best.
"""
