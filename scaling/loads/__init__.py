"""What sends requests: our own client, and load generators of others."""
