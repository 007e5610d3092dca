"""Package list of the wheel; everything else about the build stands in pyproject.toml.

`passes`, `schedules` and `targets` lie at the top of the repository and are imported from `tvm_tinytrain`.
setuptools cannot discover packages through such a mapping from pyproject.toml alone, so they are discovered
here: a new sub-package needs no edit.
"""

from setuptools import find_packages, setup

PACKAGE_DIR = {
    "tvm_tinytrain": "tvm_tinytrain",
    "tvm_tinytrain.passes": "passes",
    "tvm_tinytrain.schedules": "schedules",
    "tvm_tinytrain.targets": "targets",
}

setup(
    package_dir=PACKAGE_DIR,
    packages=[
        package
        for root, folder in PACKAGE_DIR.items()
        for package in (root, *(f"{root}.{name}" for name in find_packages(folder)))
    ],
)
