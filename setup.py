"""The compiled modules. Everything else about the package stands in pyproject.toml.

FLUIDFAST_TRACE=1 builds with line tracing, for coverage of the .pyx files.
FLUIDFAST_SANITIZE=1 builds with AddressSanitizer and UndefinedBehaviorSanitizer.
A build that cannot compile fails: there is no pure-Python fallback.

The modules are hardened as far as the compiler and the linker can: each flag is tried on a small program first.
"""

import os
import tempfile
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

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

SOURCES = sorted(path.as_posix() for path in Path("fluidfast").rglob("*.pyx"))  # relative: setuptools wants it

macros = [("CYTHON_TRACE_NOGIL", "1")] if TRACE else []
flags = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"] if SANITIZE else []
links = ["-fsanitize=address,undefined"] if SANITIZE else []

# The first group of each choice that works is taken. FORTIFY would hide from a sanitizer what it looks for.
HARDENED_COMPILE = (
    (["-fstack-protector-strong"], ["-fstack-protector"]),
    () if SANITIZE else (["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3"], ["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]),
)
HARDENED_LINK = ((["-Wl,-z,relro,-z,now"],),)  # of ELF; the linker of macOS knows no -z, and does so by itself
PROGRAM = "#include <string.h>\nint main(int n, char **a) { char b[64]; strncpy(b, a[0], 63); return n + b[0]; }\n"


class BuildHardened(build_ext):
    """Builds with the flags that work here."""

    def build_extensions(self):
        with tempfile.TemporaryDirectory() as folder:
            compile_args = [flag for choice in HARDENED_COMPILE for flag in self.first(choice, folder, compiles=True)]
            link_args = [flag for choice in HARDENED_LINK for flag in self.first(choice, folder, compiles=False)]
        for extension in self.extensions:
            extension.extra_compile_args += compile_args
            extension.extra_link_args += link_args
        super().build_extensions()

    def first(self, choice, folder, *, compiles):
        """The first group of flags with which a program compiles and links without a warning; none if none does."""
        source = Path(folder, "program.c")
        source.write_text(PROGRAM)
        for group in choice:
            try:
                objects = self.compiler.compile(
                    [str(source)], folder, extra_postargs=[*flags, "-Werror", *(group if compiles else [])]
                )
                self.compiler.link_executable(
                    objects, str(Path(folder, "program")), extra_postargs=[*links, *([] if compiles else group)]
                )
            except (CompileError, LinkError):
                continue
            return group
        return []


setup(
    cmdclass={"build_ext": BuildHardened},
    ext_modules=cythonize(
        [
            Extension(
                source.removesuffix(".pyx").replace("/", "."),
                [source],
                define_macros=macros,
                extra_compile_args=flags,
                extra_link_args=links,
            )
            for source in SOURCES
        ],
        compiler_directives=DIRECTIVES,
        build_dir="build/cython",
    ),
)
