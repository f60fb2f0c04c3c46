"""For teachers: the learner's edition, and grading what learners hand in."""
