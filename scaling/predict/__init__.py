"""What is expected of a sweep's cells, by simulating them."""
