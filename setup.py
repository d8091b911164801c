"""Builds the CPU kernels and a worker's loop around them. Without a C compiler the package installs all the
same, computes with torch and serves from Python."""

from pathlib import Path

from setuptools import Extension, setup

KERNELS, FRAMES = "moe_model/kernels/native/src", "expert_workers/transports"
SERVING, DISPATCH = "expert_workers/transports/stream/native/src", "expert_workers/dispatch/native/src"


def extension(name: str, folder: str, *include: str) -> Extension:
    """Of all C files in a folder."""
    return Extension(
        name,
        sources=sorted(map(str, Path(folder).glob("*.c"))),
        depends=[str(path) for each in (folder, *include) for path in Path(each).glob("*.h")],
        include_dirs=[folder, *include],
        # No contraction: products that are added must round the same wherever they are computed.
        extra_compile_args=["-O3", "-std=gnu11", "-ffp-contract=off", "-Wno-psabi", "-pthread"],
        extra_link_args=["-pthread"],
        optional=True,
    )


setup(
    ext_modules=[
        extension("moe_model.kernels.native._kernels", KERNELS),
        extension("expert_workers.transports.stream.native._serve", SERVING, KERNELS, FRAMES),
        extension("expert_workers.dispatch.native._dispatch", DISPATCH, KERNELS, FRAMES),
    ]
)
