"""All bars of the engine in one table: each row is a benchmark of its own, in a process of its own."""
