"""Load generators of others, unmodified: which command each is, and how what it writes is read."""
