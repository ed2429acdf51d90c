"""Looking at a data directory, whoever owns it: nothing is locked, nothing is changed."""
