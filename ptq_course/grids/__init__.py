"""Which numbers exist: integer grids, and what rounding to them costs. Chapters 01, 05, 13."""
