"""For tests of the C kernels: where the package was installed without a compiler there are none to test."""

import pytest

from moe_model.kernels.choice import HAS_NATIVE

needs_native = pytest.mark.skipif(
    not HAS_NATIVE, reason="the C kernels are not built: install with a C compiler to test them"
)

# By name: what is not built is made by nobody.
KERNELS = ["torch", pytest.param("native", marks=needs_native)]
