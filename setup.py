"""The optional compiled kernels; all else that there is to say of the package is in setup.cfg."""

from __future__ import annotations

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "p2p_dml.kernels._compiled",
            sources=["p2p_dml/kernels/_native.c"],
            depends=["p2p_dml/kernels/_native_kernel.h", "p2p_dml/kernels/_native_avx512.h"],
            # No errno and no traps: comparisons may become masks. Rounding stays IEEE's.
            extra_compile_args=["-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math"],
            extra_link_args=["-pthread"],
            optional=True,  # without a compiler torch does the same, slower
        )
    ]
)
