"""The user's cache folder: what was worked out once and can be worked out again."""

import os
import tempfile
from pathlib import Path

from mnet.errors import ToolError


def cache_folder() -> Path:
    """Return the folder, made on first use; one in the temporary place where the user's cannot be written.

    Raises:
        ToolError: no place is the user's own.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "mnet"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    folder = Path(tempfile.gettempdir()) / f"mnet-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ToolError(f"{folder} belongs to somebody else, and the user's cache folder cannot be written")
    return folder
