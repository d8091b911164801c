"""Our own kernels for CPUs, in C. `_kernels` is what setup.py builds of src/."""
