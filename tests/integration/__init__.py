"""Tests of the whole library, through its public surface, on real files."""
