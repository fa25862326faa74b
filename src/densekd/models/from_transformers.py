"""Segmentation networks of transformers: by class with a configuration, by hub name, or from a local folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from densekd.errors import DensekdError, ModelError, nearest
from densekd.models.online import require_reachable
from densekd.models.options import named_parameters, refuse_unknown, say, with_classes

_SUFFIX = "ForSemanticSegmentation"
_INSTEAD = (
    "give a local folder of save_pretrained as transformers:FOLDER, or a class such as "
    "transformers:SegformerForSemanticSegmentation with its configuration in options"
)


def build_from_transformers(
    name: str, options: Mapping[str, Any], num_classes: int, base_folder: Path, notices: list[str] | None
) -> nn.Module:
    """Build `transformers:NAME`.

    NAME is a class (`SegformerForSemanticSegmentation`: random weights, `options` are its configuration, nothing is
    fetched), a hub name (`OWNER/NAME`) or a folder of `save_pretrained`. The latter two bring their weights, because
    naming them asks for these; `options: {pretrained: false}` takes their configuration alone. Parameters that their
    weights do not cover (a head of another number of classes) start at random and are named in `notices`.

    Raises:
        ModelError: transformers is not installed, an unknown class, option or value, or a network without class map.
        CheckpointError: a hub name that is not in the local cache and cannot be fetched.
    """
    try:
        import transformers
    except ImportError:
        raise ModelError(f"transformers:{name} needs the extra `hf`: pip install 'densekd[hf]'") from None
    reference = f"transformers:{name}"
    classes = segmentation_classes(transformers)
    folder = base_folder / Path(name).expanduser()
    if name in classes:
        return _from_class(reference, getattr(transformers, name), options, num_classes)
    if folder.is_dir():
        return _from_repository(reference, str(folder), options, num_classes, notices, local=True)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _from_repository(reference, name, options, num_classes, notices, local=False)
    if hasattr(transformers, name):
        raise ModelError(f"{reference} gives no class map (`logits`); classes that do: {', '.join(classes)}")
    raise ModelError(f"{reference}: no such class or folder, and not OWNER/NAME of the hub{nearest(name, classes)}")


def segmentation_classes(transformers: Any) -> list[str]:
    """Names of the classes of transformers that give a class map."""
    return [n for n in dir(transformers) if n.endswith(_SUFFIX) and not n.startswith("Auto")]


def _from_class(reference: str, network: Any, options: Mapping[str, Any], num_classes: int) -> nn.Module:
    settled = _configuration_options(reference, network.config_class, options, num_classes)
    try:
        return network(network.config_class(**settled))
    except Exception as error:
        raise ModelError(f"{reference} cannot be built: {type(error).__name__}: {error}") from error


def _configuration_options(
    reference: str, configuration: Any, options: Mapping[str, Any], num_classes: int
) -> dict[str, Any]:
    from transformers import PretrainedConfig

    known = {"num_labels", "id2label", "label2id", *getattr(configuration, "attribute_map", {})}
    known.update(named_parameters(configuration)[0], named_parameters(PretrainedConfig)[0])
    refuse_unknown(reference, options, known)
    labels = options.get("id2label")
    if labels is None:
        return with_classes(reference, options, "num_labels", num_classes)
    if len(labels) != num_classes:
        raise ModelError(f"{reference}: options.id2label has {len(labels)} entries, {num_classes} outputs are needed")
    # With id2label given, a configuration takes the number of classes from it.
    return {name: value for name, value in options.items() if name != "num_labels"}


def _from_repository(
    reference: str, source: str, options: Mapping[str, Any], num_classes: int, notices: list[str] | None, *, local: bool
) -> nn.Module:
    from transformers import AutoConfig, AutoModelForSemanticSegmentation

    overrides = dict(options)
    pretrained = overrides.pop("pretrained", True)
    common = {"trust_remote_code": False}
    configuration = _fetched(
        reference, source, local, lambda **where: AutoConfig.from_pretrained(source, **common, **where)
    )
    for option, value in _configuration_options(reference, type(configuration), overrides, num_classes).items():
        setattr(configuration, option, value)
    if not pretrained:
        return _guarded(reference, lambda: AutoModelForSemanticSegmentation.from_config(configuration, **common))
    network, info = _fetched(
        reference,
        source,
        local,
        lambda **where: AutoModelForSemanticSegmentation.from_pretrained(
            source,
            config=configuration,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            weights_only=True,
            **common,
            **where,
        ),
    )
    _tell(reference, info, notices)
    # Files in half precision would make a network in half precision.
    return network.float()


def _fetched(reference: str, source: str, local: bool, load: Callable[..., Any]) -> Any:
    """What `load` gives from the local cache, else from the hub after a quick check that it answers."""
    import huggingface_hub

    try:
        with _quiet():
            return load(local_files_only=True)
    except OSError as error:
        if local:
            raise ModelError(f"{reference}: {error}") from error
    except Exception as error:
        raise ModelError(f"{reference} cannot be built: {type(error).__name__}: {error}") from error
    url = huggingface_hub.hf_hub_url(source, "config.json")
    require_reachable(url, reference, _INSTEAD)
    return _guarded(reference, load)


def _guarded(reference: str, load: Callable[[], Any]) -> Any:
    try:
        with _quiet():
            return load()
    except DensekdError:
        raise
    except Exception as error:
        raise ModelError(f"{reference} cannot be built: {type(error).__name__}: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own report of what it loaded: `_tell` says the same in one line."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _tell(reference: str, info: Mapping[str, Any], notices: list[str] | None) -> None:
    mismatched = [entry[0] if isinstance(entry, (tuple, list)) else entry for entry in info.get("mismatched_keys", ())]
    fresh = sorted({*info.get("missing_keys", ()), *map(str, mismatched)})
    if fresh:
        more = f", and {len(fresh) - 4} more" if len(fresh) > 4 else ""
        shown = ", ".join(fresh[:4])
        say(notices, f"{reference}: {len(fresh)} parameters are not in its weights and start at random: {shown}{more}")
    unread = sorted(info.get("unexpected_keys", ()))
    if unread:
        say(notices, f"{reference}: {len(unread)} of its weights have no place in the network: {', '.join(unread[:4])}")
