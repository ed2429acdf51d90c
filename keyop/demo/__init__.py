"""``keyop demo``: a real file through a channel, a subscriber killed on the way, and the count."""
