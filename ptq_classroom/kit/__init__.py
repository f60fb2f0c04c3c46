"""The kit of every chapter: check, hint, predict, the learner's file, figures, widgets."""
