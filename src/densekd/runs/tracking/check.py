"""What can be told of the trackers before any work: packages, and W&B's network and login."""

from __future__ import annotations

import importlib.util
import inspect
from typing import Any

from densekd.config import TrackSpec
from densekd.errors import ConfigError

_SECONDS = 10.0
"""Within which W&B's server has to answer."""
_OFFLINE = (
    "with WANDB_MODE=offline in the environment the run keeps everything in its folder, and `wandb sync` sends it later"
)


def require_trackers(spec: TrackSpec) -> None:
    """Refuse trackers that could not begin.

    Raises:
        ConfigError: a package is missing; W&B is not reached or not logged in to, and is not in offline mode.
    """
    missing = [name for name in spec.to if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f'track.to: {" and ".join(missing)} not installed: pip install "densekd[track]"')
    if "wandb" in spec.to and wandb_mode() == "online":
        _require_server()
        _require_login()


def wandb_mode() -> str:
    """`online`, `offline` or `disabled`, as the user has set W&B up: `WANDB_MODE`, `wandb offline`."""
    import wandb

    mode: str = wandb.setup().settings.mode
    return {"dryrun": "offline", "run": "online", "shared": "online"}.get(mode, mode)


def _require_server() -> None:
    import requests
    import wandb

    address = wandb.setup().settings.base_url
    try:
        requests.get(address, timeout=_SECONDS)
    except requests.RequestException as error:
        raise ConfigError(
            f"track.to: W&B does not answer at {address} ({type(error).__name__}); {_OFFLINE}. Without W&B: leave "
            "wandb out of track.to"
        ) from None


def _require_login() -> None:
    """Ask W&B whether it has a login that its server takes; it never asks the user back.

    Raises:
        ConfigError: it has none, or the server refuses it.
    """
    import wandb

    settings = wandb.setup().settings
    spoken, settings.silent = settings.silent, True
    try:
        known = _known(wandb)
    except wandb.errors.Error as error:
        raise ConfigError(f"track.to: W&B refuses the login ({error}): `wandb login --relogin`; {_OFFLINE}") from None
    finally:
        settings.silent = spoken
    if not known:
        raise ConfigError(f"track.to: W&B has no login on this machine: `wandb login`; {_OFFLINE}")


def _known(wandb: Any) -> bool:
    if "prompt" in inspect.signature(wandb.login).parameters:
        return bool(wandb.login(prompt=False, verify=True))
    return wandb.api.api_key is not None  # versions that cannot be told not to ask
