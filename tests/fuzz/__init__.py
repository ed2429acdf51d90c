"""Whatever comes from outside, fuzzed: no input may do more than its contract allows."""
