"""Which module of the network stops an export from taking images of other sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from densekd.export.graph import Graph
from densekd.export.writing import OnnxGraph

_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def described(network: nn.Module, names: list[str]) -> str:
    """`decoder.psp.blocks.1.pool.0 (AdaptiveAvgPool2d; 2 more of its kind)`."""
    kinds = {name: type(network.get_submodule(name)).__name__ for name in names}
    first = names[0]
    alike = sum(kind == kinds[first] for kind in kinds.values()) - 1
    return f"{first} ({kinds[first]}" + (f"; {alike} more of its kind)" if alike else ")")


def size_dependent(network: nn.Module) -> list[str]:
    """Modules of which exporters make a fixed size: adaptive pooling to more than one place."""

    def several(module: nn.Module) -> bool:
        asked: Any = module.output_size
        return any(side not in (1, None) for side in (asked if isinstance(asked, tuple) else (asked,)))

    return [name for name, module in network.named_modules() if isinstance(module, _POOLS) and several(module)]


def at_fault(onnx: OnnxGraph, graph: Graph, images: Tensor) -> str | None:
    """The module of the network whose part of an ONNX graph fails, or differs first, on a batch of images.

    Every module's last value is made an output of the graph. Where onnxruntime fails, its message names the node;
    else the first module whose value differs from torch's is at fault.

    Returns:
        Its dotted path; None where it cannot be told.
    """
    lasts = _last_values(onnx)
    session = _session(onnx, list(lasts.values()))
    try:
        found = session.run(list(lasts.values()), {session.get_inputs()[0].name: images.numpy()})
    except Exception as error:  # onnxruntime has a class of its own for every reason
        words = str(error)
        name = next((node for node in sorted(onnx.scopes, key=len, reverse=True) if f"'{node}'" in words), None)
        return None if name is None else _existing(graph.network, onnx.scopes[name])
    values = dict(zip(lasts, found, strict=True))
    return next((name for name, right in _in_torch(graph, images) if _differs(values.get(name), right)), None)


def _last_values(onnx: OnnxGraph) -> dict[str, str]:
    """The value that each module computes last, by the module's dotted path."""
    lasts: dict[str, str] = {}
    for node in onnx.proto.graph.node:
        scope = onnx.scopes.get(node.name, "")
        parts = scope.split(".") if scope else []
        for end in range(1, len(parts) + 1):
            lasts[".".join(parts[:end])] = node.output[0]
    return lasts


def _session(onnx: OnnxGraph, names: list[str]) -> Any:
    import onnxruntime
    from onnx import ModelProto, ValueInfoProto

    proto = ModelProto()
    proto.CopyFrom(onnx.proto)
    outputs = {value.name for value in proto.graph.output}
    proto.graph.output.extend(ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in outputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _in_torch(graph: Graph, images: Tensor) -> list[tuple[str, Tensor]]:
    """What each module gives, in the order in which they end; those that give one tensor."""
    found: list[tuple[str, Tensor]] = []

    def keep(name: str, output: Any) -> None:
        if isinstance(output, Tensor):
            found.append((name, output.clone()))  # the next module may work in place

    handles = [
        module.register_forward_hook(lambda _module, _args, output, name=name: keep(name, output))
        for name, module in graph.network.named_modules()
        if name
    ]
    try:
        with torch.inference_mode():
            graph(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _differs(value: Any, right: Tensor) -> bool:
    if not isinstance(value, np.ndarray) or not right.is_floating_point():
        return False
    if value.shape != tuple(right.shape):
        # The exporter may have merged layers over a module's end; a value of other axes is not its output.
        return value.ndim == right.ndim and value.shape[:2] == tuple(right.shape[:2])
    error = float(np.abs(value - right.numpy()).max()) if value.size else 0.0
    return not error <= 1e-3 * max(float(right.abs().max()), 1e-6)


def _existing(network: nn.Module, path: str) -> str | None:
    modules: Mapping[str, nn.Module] = dict(network.named_modules())
    while path and path not in modules:
        path = path.rpartition(".")[0]
    return path or None
