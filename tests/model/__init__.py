"""State machines: keyop against a few lines of plain Python that do the same."""
