"""The scorecard of reliability: each row tries to break one guarantee and counts what broke."""
