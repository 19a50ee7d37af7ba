"""The compiled modules. Everything else about the package stands in pyproject.toml.

FLUIDFAST_TRACE=1 builds with line tracing, for coverage of the .pyx files.
FLUIDFAST_SANITIZE=1 builds with AddressSanitizer and UndefinedBehaviorSanitizer.
A build that cannot compile fails: there is no pure-Python fallback.
"""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

TRACE = os.environ.get("FLUIDFAST_TRACE") == "1"
SANITIZE = os.environ.get("FLUIDFAST_SANITIZE") == "1"

DIRECTIVES = {
    "language_level": 3,
    "binding": True,
    "embedsignature": False,
    "boundscheck": True,
    "initializedcheck": True,
    "cdivision": True,
    "linetrace": TRACE,
}

# module, in the order of the floors (shared headers are the .pxd beside each)
MODULES = (
    "_pqueue", "_machine", "_clock", "_resp", "_lane", "_run", "_codec", "_leases", "_outbox", "_slots", "_front",
)  # fmt: skip

macros = [("CYTHON_TRACE_NOGIL", "1")] if TRACE else []
flags = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"] if SANITIZE else []
links = ["-fsanitize=address,undefined"] if SANITIZE else []

setup(
    ext_modules=cythonize(
        [
            Extension(
                f"fluidfast.{name}",
                [f"fluidfast/{name}.pyx"],
                define_macros=macros,
                extra_compile_args=flags,
                extra_link_args=links,
            )
            for name in MODULES
        ],
        compiler_directives=DIRECTIVES,
        build_dir="build/cython",
    ),
)
