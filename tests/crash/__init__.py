"""Crashes: real processes killed, power cuts replayed, directories damaged by hand."""
