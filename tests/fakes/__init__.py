"""Doubles of keyop's seams: a clock that a test turns, and file systems that record or fail."""
