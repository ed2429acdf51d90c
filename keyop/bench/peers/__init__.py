"""``bin/keyop-bench --peers``: keyop beside what would be used instead, on the same work."""
