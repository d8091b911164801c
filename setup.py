"""Builds the CPU kernels. Without a C compiler the package installs all the same and computes with torch."""

from setuptools import Extension, setup

SOURCES = ("module", "ops", "rows", "gemm", "threads")
HEADERS = ("ops.h", "rows.h", "rows_impl.h", "gemm_impl.h", "matrix.h", "threads.h")
FOLDER = "moe_model/native/src"

setup(
    ext_modules=[
        Extension(
            "moe_model.native._kernels",
            sources=[f"{FOLDER}/{name}.c" for name in SOURCES],
            depends=[f"{FOLDER}/{name}" for name in HEADERS],
            # No contraction: products that are added must round the same wherever they are computed.
            extra_compile_args=["-O3", "-std=gnu11", "-ffp-contract=off", "-Wno-psabi", "-pthread"],
            extra_link_args=["-pthread"],
            optional=True,
        )
    ]
)
