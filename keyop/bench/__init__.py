"""``bin/keyop-bench``: each figure beside the physical limit on the same bytes, as a ratio."""
