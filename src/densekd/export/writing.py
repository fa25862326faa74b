"""From a graph to the bytes of a file: torch.export, torch.onnx."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from densekd.errors import ExportError
from densekd.export.manifest import FILE, INPUT, KEY, OUTPUT, Manifest, Size
from densekd.export.pt2_file import quiet_torch
from densekd.export.sizes import plain

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch.export import ExportedProgram

_MOST_BYTES = 1_900_000_000  # a protobuf message holds two gigabytes at most


@dataclass
class OnnxGraph:
    """A graph of ONNX that is not written yet.

    Attributes:
        scopes: the module that each node comes from, by the node's name, as a dotted path in the network.
    """

    proto: ModelProto
    scopes: Mapping[str, str]

    def save(self, path: Path, manifest: Manifest) -> None:
        """Write it with its manifest."""
        del self.proto.metadata_props[:]
        entry = self.proto.metadata_props.add()
        entry.key, entry.value = KEY, manifest.text()
        path.write_bytes(self.proto.SerializeToString())


def traced(graph: nn.Module, size: Size, *, dynamic: bool) -> ExportedProgram:
    """The graph as torch.export sees it, any number of images at a time.

    Args:
        size: of the images it is traced with.
        dynamic: of any size, too.

    Raises:
        ExportError: torch.export cannot; its own words are given.
    """
    some = torch.export.Dim.DYNAMIC
    axes = {0: some, 2: some, 3: some} if dynamic else {0: some}
    try:
        with quiet_torch(), torch.no_grad():
            program = torch.export.export(graph, (torch.zeros(2, 3, *size),), dynamic_shapes=(axes,), strict=False)
            return _lean(program, size)
    except Exception as error:  # torch.export has a class of its own for every reason
        raise ExportError(f"torch.export says {type(error).__name__}: {plain(str(error))}") from error


def _lean(program: ExportedProgram, size: Size) -> ExportedProgram:
    """Without weights that nothing reads, images of the trace, and paths of this machine.

    segmentation-models-pytorch keeps the stages behind a smaller `encoder_depth`, often most of the weights.
    """
    program.graph.eliminate_dead_code()
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder" and not node.users}
    unread = [spec for spec in program.graph_signature.input_specs if spec.target and spec.arg.name in nodes]
    for spec in unread:
        program.graph.erase_node(nodes[spec.arg.name])
        program.graph_signature.input_specs.remove(spec)
        program.state_dict.pop(spec.target, None)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    program.graph_module.recompile()
    program.example_inputs = ((torch.zeros(1).expand(2, 3, *size),), {})  # saved as the one number that it holds
    return program


def onnx_graph(program: ExportedProgram) -> OnnxGraph:
    """The ONNX form of a traced graph, by torch's exporter with its default opset.

    Raises:
        ExportError: it cannot; its own words are given. Or the weights are too large for a file of ONNX.
    """
    size = sum(value.numel() * value.element_size() for value in program.state_dict.values())
    if size > _MOST_BYTES:
        raise ExportError(
            f"the student's weights are {size / 1e9:.1f} GB; one ONNX file holds 2 GB. Export it with --to pt2 or "
            "safetensors"
        )
    try:
        with quiet_torch(), torch.no_grad():
            made: Any = torch.onnx.export(
                program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False, optimize=True
            )
            proto = made.model_proto
    except Exception as error:  # as above
        raise ExportError(f"torch.onnx says {type(error).__name__}: {plain(str(error))}") from error
    return _cleaned(proto)


def _cleaned(proto: ModelProto) -> OnnxGraph:
    """Read which module each node is of, then drop what the exporter noted: it holds paths of this machine."""
    scopes = {}
    for node in proto.graph.node:
        noted = {entry.key: entry.value for entry in node.metadata_props}
        scopes[node.name] = _module_of(noted.get("pkg.torch.onnx.name_scopes", ""))
        del node.metadata_props[:]
    _name_axes(proto)
    for values in (proto.graph.value_info, proto.graph.initializer, proto.graph.input, proto.graph.output):
        for value in values:
            del value.metadata_props[:]
    del proto.graph.metadata_props[:]
    return OnnxGraph(proto, scopes)


def _module_of(scopes: str) -> str:
    """`['', 'network', 'network.decoder', 'conv2d_3']` -> `decoder`: the last but one, without the graph around it."""
    names = [name.strip(" '\"") for name in scopes.strip("[]").split(",")]
    return names[-2].removeprefix("network").removeprefix(".") if len(names) > 1 else ""


def _name_axes(proto: ModelProto) -> None:
    """Readable names for the axes that may change: of the input alone, what follows from them is not repeated."""
    names = ("batch", "channels", "height", "width")
    for value in proto.graph.input:
        for axis, name in zip(value.type.tensor_type.shape.dim, names, strict=False):
            if axis.dim_param:
                axis.dim_param = name
    for value in proto.graph.output:
        axes = value.type.tensor_type.shape.dim
        for axis, name in zip(axes, names if len(axes) == 4 else ("batch", "height", "width"), strict=False):
            if axis.dim_param:
                axis.dim_param = name
    del proto.graph.value_info[:]  # shapes in the old names


def pt2_bytes(program: ExportedProgram, manifest: Manifest) -> bytes:
    """The pt2 file of a traced graph.

    Raises:
        ExportError: torch cannot write it; its own words are given.
    """
    stream = io.BytesIO()
    try:
        with quiet_torch():
            torch.export.save(program, stream, extra_files={FILE: manifest.text()})
    except Exception as error:  # as above
        raise ExportError(f"torch.export.save says {type(error).__name__}: {plain(str(error))}") from error
    return stream.getvalue()
