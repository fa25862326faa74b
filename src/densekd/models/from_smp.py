"""Networks of segmentation-models-pytorch: `smp:PSPNet`, with native and timm (`tu-`) encoders."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from densekd.errors import ModelError, nearest
from densekd.models.online import hub_file
from densekd.models.options import named_parameters, refuse_unknown, with_classes
from densekd.models.output_stride import settle_output_stride, verify_output_stride
from densekd.models.timm_weights import refuse_files, timm_weights

_INSTEAD = "give the encoder's weights as a file in encoder_checkpoint, or drop options.encoder_weights"


def build_from_smp(name: str, options: Mapping[str, Any], num_classes: int) -> nn.Module:
    """Build `smp:NAME`. `encoder_weights` is None unless given; `output_stride` is an option of densekd's own.

    Raises:
        ModelError: an unknown architecture, encoder or option (the nearest is named), or values smp refuses.
        CheckpointError: encoder weights were asked for and cannot be fetched.
    """
    import segmentation_models_pytorch as smp

    reference = f"smp:{name}"
    architectures = {a.__name__: a for a in smp.MODEL_ARCHITECTURES_MAPPING.values()}
    if name not in architectures:
        raise ModelError(
            f"{reference}: no such architecture{nearest(name, architectures)} ({', '.join(architectures)})"
        )
    architecture = architectures[name]
    known, _ = named_parameters(architecture)
    encoder = options.get("encoder_name", inspect.signature(architecture).parameters["encoder_name"].default)
    _check_options(reference, options, known, encoder)
    settled, stride = settle_output_stride(reference, name, options)
    settled = with_classes(reference, settled, "classes", num_classes)
    settled |= _encoder_arguments(reference, str(encoder), settled)
    try:
        network = architecture(**settled)
    except Exception as error:
        raise ModelError(f"{reference} with encoder {encoder!r} cannot be built: {_reason(error)}") from error
    if stride is not None:
        channels = settled.get("in_channels", 3)
        verify_output_stride(f"{reference} with encoder {encoder!r}", network.encoder, stride, channels)
    return network


def _check_options(reference: str, options: Mapping[str, Any], known: list[str], encoder: Any) -> None:
    names = [*known, "output_stride"]
    _check_encoder(reference, encoder)
    refuse_files(reference, options)
    if not encoder.startswith("tu-"):
        refuse_unknown(f"{reference} with encoder {encoder!r}", options, names)
    for option in options:
        # What is left goes to timm, which knows its own options; a slip of the pen is caught here.
        if option not in names and difflib.get_close_matches(option, names, cutoff=0.85):
            raise ModelError(f"{reference} has no option {option!r}{nearest(option, names)}")
    if options.get("activation") not in (None, "identity"):
        raise ModelError(
            f"{reference}: options.activation is {options['activation']!r}, but losses here take logits; remove it"
        )


def _check_encoder(reference: str, encoder: Any) -> None:
    import timm
    from segmentation_models_pytorch.encoders import encoders

    if not isinstance(encoder, str):
        raise ModelError(f"{reference}: options.encoder_name must be a name, got {encoder!r}")
    if encoder.startswith("tu-"):
        if not timm.is_model(encoder.removeprefix("tu-")):
            hint = nearest(encoder, [f"tu-{model}" for model in timm.list_models()])
            raise ModelError(f"{reference}: timm has no network for encoder {encoder!r}{hint}")
    elif encoder not in encoders and not encoder.startswith("timm-"):
        candidates = [*encoders, *(f"tu-{model}" for model in timm.list_models())]
        raise ModelError(f"{reference}: no encoder {encoder!r}{nearest(encoder, candidates)}")


def _encoder_arguments(reference: str, encoder: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Encoder name and weights as smp wants them; weights are looked for before smp starts to."""
    weights = options.get("encoder_weights")
    if not encoder.startswith("tu-"):
        return {"encoder_weights": _native_weights(reference, encoder, weights)}
    from densekd.models.timm_widths import UNPUBLISHED, WIDTH_OPTIONS, open_width

    name = encoder.removeprefix("tu-")
    if weights and any(option in options for option in UNPUBLISHED):
        raise ModelError(f"{reference}: no weights are published for {encoder!r} of another width or stem; {_INSTEAD}")
    if any(option in options for option in WIDTH_OPTIONS):
        return {"encoder_name": f"tu-{open_width(reference, name)}", "encoder_weights": None}
    if not weights:
        return {"encoder_weights": None}
    return {"encoder_weights": True, "pretrained_cfg_overlay": {"file": timm_weights(reference, name, _INSTEAD)}}


def _native_weights(reference: str, encoder: str, weights: Any) -> str | None:
    from segmentation_models_pytorch.encoders import encoders

    if weights is None or weights is False:
        return None
    published = encoders[encoder]["pretrained_settings"] if encoder in encoders else {}
    if weights not in published:
        raise ModelError(
            f"{reference}: encoder {encoder!r} has no weights {weights!r}{nearest(str(weights), published)} "
            f"(published: {', '.join(published) or 'none'})"
        )
    source = published[weights]
    wanted = f"the {weights} weights of encoder {encoder!r}"
    for filename in ("config.json", "model.safetensors"):
        hub_file(source["repo_id"], filename, source["revision"], wanted, _INSTEAD)
    return str(weights)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
