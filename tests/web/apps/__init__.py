"""Web applications, as docs/embedding.md prints them."""
