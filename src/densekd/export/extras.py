"""The packages of the extra `export`, which not everybody has."""

from __future__ import annotations

import importlib.util

from densekd.errors import ExportError


def require_export(*packages: str) -> None:
    """Refuse at once, with the command that installs them, where packages are missing.

    Raises:
        ExportError: one of `packages` cannot be imported.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f'{", ".join(missing)} is not installed: pip install "densekd[export]"')
