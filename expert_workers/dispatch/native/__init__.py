"""A pool's dispatch in C: src/."""
