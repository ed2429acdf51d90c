"""Verifying a whole data directory, and mending what can be mended without losing anything."""
