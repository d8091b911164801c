"""A worker's loop in C. `_serve` is what setup.py builds of src/."""
