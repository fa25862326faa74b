"""Weights from the network: taken from the local cache, or fetched after a quick check that the host answers.

The libraries retry for up to a minute when there is no connection; here one request of a few seconds decides.
"""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from pathlib import Path

from densekd.errors import CheckpointError

_SECONDS = 8.0


def require_reachable(url: str, wanted: str, instead: str) -> None:
    """Ask for the header of `url` once, in at most 8 seconds.

    Args:
        url: the file that will be fetched.
        wanted: what the file is, for the message.
        instead: how the user can go on without it, for the message.

    Raises:
        CheckpointError: no answer, or an answer that the file is not there; says what was wanted and how to go on.
    """
    outcome: list[str] = []
    # A thread, because looking up a host name has no time-out of its own.
    thread = threading.Thread(target=lambda: outcome.append(_ask(url)), daemon=True)
    thread.start()
    thread.join(_SECONDS)
    problem = outcome[0] if outcome else f"no answer within {_SECONDS:.0f} s"
    if problem:
        raise CheckpointError(f"{wanted} cannot be fetched: {url}: {problem}; {instead}")


def _ask(url: str) -> str:
    """Empty if the file can be fetched, else the reason why not."""
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "densekd"})
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS - 1):
            return ""
    except urllib.error.HTTPError as error:
        # 405: a host that knows no HEAD requests; it is there all the same.
        return "" if error.code == 405 else f"HTTP status {error.code} ({error.reason})"
    except urllib.error.URLError as error:
        return f"no connection ({error.reason})"
    except (OSError, ValueError) as error:
        return f"no connection ({error})"


def hub_file(repository: str, filename: str, revision: str | None, wanted: str, instead: str) -> Path:
    """A file of the Hugging Face hub: from the local cache, else fetched.

    Raises:
        CheckpointError: it is not in the cache and cannot be fetched.
    """
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(repository, filename, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    url = huggingface_hub.hf_hub_url(repository, filename, revision=revision)
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise CheckpointError(f"{wanted} cannot be fetched: HF_HUB_OFFLINE is set ({url}); {instead}")
    require_reachable(url, wanted, instead)
    try:
        return Path(huggingface_hub.hf_hub_download(repository, filename, revision=revision))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{wanted} cannot be fetched: {url}: {error}; {instead}") from error


def torch_file(url: str, wanted: str, instead: str) -> None:
    """Make sure that `torch.hub` can give the file of `url`: it is in its cache, or the host answers."""
    import torch

    if not (Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]).is_file():
        require_reachable(url, wanted, instead)
