"""Where the data folders lie: beside the packages in a checkout, inside `mnet` in a wheel."""

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """Return the folder `name` ("templates", "firmware", "data", "docs").

    Raises:
        FileNotFoundError: the installation lacks it.
    """
    for candidate in (_PACKAGE / name, _PACKAGE.parent / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"the installed package lacks its folder {name!r}")


def shared_folder() -> Path | None:
    """Return the folder of third-party models and data ($MNET_SHARED, default ../shared), or None."""
    path = Path(os.environ.get("MNET_SHARED", _PACKAGE.parent.parent / "shared"))
    return path if path.is_dir() else None
