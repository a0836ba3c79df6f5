"""A computer without compilers and emulators, for tests of what is said there."""

import importlib.util

import pytest

from mnet import toolchain
from mnet.errors import ToolError


def hide_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty the PATH and hide the package ziglang until the test ends."""
    real = importlib.util.find_spec
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, package=None: None if name == "ziglang" else real(name)
    )


def needs_host_compiler() -> None:
    """Skip the test where no C compiler for this computer is installed."""
    try:
        toolchain.find_compiler("cc")
    except ToolError as error:
        pytest.skip(str(error))
