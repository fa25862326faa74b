"""What an exported student says of itself: classes, what goes in and comes out, its source, how it was checked.

It travels inside every exported file: ONNX `metadata_props["densekd"]`, pt2 `extra_files["densekd.json"]`, the metadata
of a safetensors file under `densekd`, `densekd.json` of a hub folder.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from densekd._version import __version__
from densekd.config import Recipe
from densekd.errors import ExportError
from densekd.inference import WHOLE, EvaluationSpec
from densekd.records.base import Record
from densekd.records.run import BestScores

Format = Literal["onnx", "pt2", "safetensors", "hub-folder"]
OutputKind = Literal["logits", "softmax", "argmax"]
Size = tuple[int, int]

KEY = "densekd"
FILE = "densekd.json"
INPUT, OUTPUT = "images", "output"


class NetworkInfo(Record):
    """The network as a recipe names it: what built it, without its weights."""

    model: str = Field(description="reference, for instance smp:Unet")
    options: dict[str, Any] = Field(default_factory=dict, description="as in the recipe")


class InputInfo(Record):
    """The images `(N, channels, H, W)`, RGB."""

    channels: int = Field(default=3, description="of the images")
    mean: tuple[float, ...] = Field(description="of channels from 0 to 1; what the run subtracted")
    std: tuple[float, ...] = Field(description="of channels from 0 to 1; what the run divided by")
    values: Literal["normalised", "0..255"] = Field(
        default="normalised", description="normalised: (x / 255 - mean) / std, done by the caller; 0..255: plain pixels"
    )
    size: Size | None = Field(default=None, description="height and width; null: any that fits `multiple_of`")
    batch: Literal["dynamic"] | int = Field(
        default="dynamic", description='how many images at once; "dynamic": any number'
    )
    multiple_of: int = Field(default=1, description="height and width must be multiples of it")
    precision: Literal["float32"] = Field(default="float32", description="type of the images")


class InsideInfo(Record):
    """What happens inside the file, besides the network."""

    normalise: bool = Field(default=False, description="plain pixels, 0 to 255, are normalised inside")
    resize: Size | None = Field(default=None, description="images are resized to it (bilinear, antialiased) first")
    output: OutputKind = Field(
        default="logits",
        description="logits (N, K, H, W); softmax: class probabilities, binary (N, 1, H, W) of class 1; argmax: class "
        "ids (N, H, W), int64. Always at the height and width of the images that go in",
    )


class Evaluated(Record):
    """How the run brought images to the student when it scored it: what a prediction repeats, outside of the file."""

    size: Size | None = Field(default=None, description="height and width that images were resized to")
    fit: Size | None = Field(default=None, description="short and long side that images were fitted into")
    evaluation: EvaluationSpec = Field(default=WHOLE, description="whole images or windows, scales, mirroring")


class Source(Record):
    """The run it was made of."""

    run: str = Field(description="its name")
    seed: int = Field(description="its seed")
    method: str = Field(description="what it was distilled with; none: trained alone")
    student_sha256: str = Field(description="of student.safetensors")
    recipe_sha256: str = Field(description="of its resolved recipe")
    split: str = Field(default="val", description="that the scores are of")
    scores: BestScores = Field(description="of the best student, as the run measured them")


class Verified(Record):
    """The file, opened again, against the network in torch, in float32 on the CPU; before it became INT8."""

    max_abs_error: float | None = Field(description="over all outputs; null for class ids, which have none")
    argmax_agreement: float = Field(description="share of the decided pixels with the same class")
    undecided: int = Field(
        default=0, description="pixels whose two best classes lie closer together than twice the error; left out"
    )
    different: int = Field(default=0, description="of these, pixels with another class")
    pixels: int = Field(default=0, description="compared in all")
    images: int = Field(description="real images compared")
    of: str = Field(default="", description="which images")
    sizes: list[Size] = Field(description="heights and widths compared")
    batches: list[int] = Field(default_factory=list, description="batch sizes compared")
    by: str = Field(default="", description="what ran the file, for instance onnxruntime 1.31.0")


class Quantised(Record):
    """INT8: what it was calibrated on, and what it cost."""

    calibration_images: int = Field(description="of the training split, that the value ranges were taken from")
    miou_before: float = Field(description="of the file in float32, from 0 to 1")
    miou_after: float = Field(description="of the INT8 file, from 0 to 1")
    images: int = Field(description="of the validation split, scored before and after")
    bytes_before: int = Field(description="size of the file in float32")
    bytes_after: int = Field(description="size of the INT8 file")


class Manifest(Record):
    """What an exported student says of itself."""

    schema_version: Literal[1] = Field(default=1, alias="schema", description="of this manifest")
    format: Format = Field(description="of the file or folder")
    densekd: str = Field(default=__version__, description="version that made it")
    classes: tuple[str, ...] = Field(description="names; the position of a name is its id")
    palette: tuple[tuple[int, int, int], ...] | None = Field(
        default=None, description="colours of the classes, RGB; null: none are known"
    )
    binary: bool = Field(default=False, description="two classes, one logit: class 1 where it is above 0")
    network: NetworkInfo = Field(description="the student, as a recipe names it")
    input: InputInfo = Field(description="what it takes")
    inside: InsideInfo = Field(default=InsideInfo(), description="what happens in it besides the network")
    evaluated: Evaluated = Field(default=Evaluated(), description="how the run brought images to the student")
    source: Source = Field(description="the run it was made of")
    verified: Verified | None = Field(
        default=None,
        description="how it was compared with the network in torch; with `int8`, the float32 file that it was made of",
    )
    int8: Quantised | None = Field(default=None, description="null: not quantised")
    notices: list[str] = Field(default_factory=list, description="what the user should know")

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    @property
    def outputs(self) -> int:
        """Channels of logits: the number of classes, or 1 for a binary task."""
        return 1 if self.binary else len(self.classes)

    def text(self) -> str:
        """As JSON."""
        return self.model_dump_json(by_alias=True)


def evaluated_as(recipe: Recipe) -> Evaluated:
    """What a recipe says of it."""
    augment = recipe.data.augment
    return Evaluated(size=augment.size, fit=augment.fit, evaluation=recipe.evaluation)


def read_manifest(text: str | None, where: object) -> Manifest:
    """The manifest of a file, from its JSON.

    Args:
        text: None where the file has none.
        where: the file, for messages.

    Raises:
        ExportError: there is none, or not of this schema.
    """
    if not text:
        raise ExportError(f"{where}: holds no manifest of densekd; it was not made by `densekd export`")
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the whole"
        raise ExportError(f"{where}: its manifest is not of schema 1: {key}: {first['msg']}") from None
