"""Published weights of timm's networks, as a local file."""

from __future__ import annotations

from collections.abc import Iterable

from densekd.errors import ModelError
from densekd.models.online import hub_file


def timm_weights(reference: str, name: str, instead: str) -> str:
    """Path of the published weights of timm's `name`, from the local cache or fetched.

    Raises:
        ModelError: none are published, or not on the hub.
        CheckpointError: they cannot be fetched.
    """
    import timm

    if not timm.models.is_model_pretrained(name):
        raise ModelError(f"{reference}: timm publishes no weights for {name!r}; {instead}")
    config = timm.models.get_pretrained_cfg(name)
    repository = getattr(config, "hf_hub_id", None)
    if not repository:
        raise ModelError(f"{reference}: the weights of {name!r} are not on the hub; {instead}")
    filename = getattr(config, "hf_hub_filename", None) or "model.safetensors"
    return str(hub_file(repository, filename, None, f"the weights of timm's {name!r}", instead))


def refuse_files(reference: str, options: Iterable[str]) -> None:
    """Refuse timm's own options that name files of weights: densekd reads weights itself, and unpickles nothing.

    Raises:
        ModelError: it says where the file belongs.
    """
    for option in ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"):
        if option in options:
            raise ModelError(
                f"{reference}: options.{option} is not read: timm would open a file with it; name the file in "
                "checkpoint or encoder_checkpoint"
            )
