"""Recipes: one YAML file that describes a training completely, read, overridden, validated, saved.

A recipe is data: it never names a function to call, except a model (see `densekd.models`). Relative paths in it mean
relative to the folder where the command runs; the resolved recipe holds absolute ones.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from densekd.data.specs import DataSpec
from densekd.errors import ConfigError, nearest
from densekd.files import sha256
from densekd.models.specs import ModelSpec
from densekd.spec import Spec
from densekd.tasks.specs import SegmentationSpec
from densekd.training.specs import RuntimeSpec, TermSpec, TrainSpec


class TeacherSpec(ModelSpec):
    """The frozen teacher, and how it wants its images when that differs from the student's."""

    mean: tuple[float, float, float] | None = Field(None, description="its own normalisation; null: the student's")
    std: tuple[float, float, float] | None = Field(None, description="its own normalisation; null: the student's")
    size: tuple[int, int] | None = Field(None, description="its own input height and width; null: the student's")
    untrained: bool = Field(False, description="allow a teacher without trained weights (for tests of the machinery)")

    @model_validator(mode="after")
    def _mean_with_std(self) -> TeacherSpec:
        if (self.mean is None) != (self.std is None):
            raise ValueError("give `mean` and `std` together")
        return self


class PreflightSpec(Spec):
    """The checks before a distillation."""

    teacher_images: int = Field(32, ge=0, description="validation images on which the teacher is scored; 0: none")
    on_problem: typing.Literal["stop", "warn"] = Field("stop", description="what a named problem does")


class Recipe(Spec):
    """One training: what is trained, on what, how, and under which teacher."""

    name: str = Field("run", description="name of the run folder under runs/")
    seed: int = Field(0, ge=0, description="seed of initial weights, order, augmentation, dropout")
    task: SegmentationSpec = Field(default_factory=SegmentationSpec, description="the task and its loss")
    data: DataSpec = Field(description="images and labels")
    student: ModelSpec = Field(description="the network that is trained")
    teacher: TeacherSpec | None = Field(None, description="the frozen teacher; only `distill` uses it")
    terms: tuple[TermSpec, ...] = Field((), description="distillation terms; only `distill` uses them")
    train: TrainSpec = Field(description="how it is trained")
    runtime: RuntimeSpec = Field(default_factory=RuntimeSpec, description="where it computes")
    preflight: PreflightSpec = Field(default_factory=PreflightSpec, description="checks before a distillation")


def shipped_recipes() -> dict[str, str]:
    """Names of the recipes inside the package and the first comment line of each."""
    found = {}
    for entry in sorted(resources.files("densekd").joinpath("recipes").iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".yaml"):
            first = entry.read_text(encoding="utf-8").splitlines()[0]
            found[entry.name.removesuffix(".yaml")] = first.lstrip("# ").strip()
    return found


def _read_text(name: str) -> str:
    path = Path(name)
    if path.is_dir() and (path / "recipe.yaml").is_file():
        path = path / "recipe.yaml"  # a run folder: its resolved recipe
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"recipe {name}: cannot be read ({error})") from None
    known = shipped_recipes()
    if name in known:
        return resources.files("densekd").joinpath("recipes", f"{name}.yaml").read_text(encoding="utf-8")
    raise ConfigError(
        f"recipe {name!r}: no such file, and no shipped recipe of that name{nearest(name, known)}; "
        f"shipped: {', '.join(known)}"
    )


def read_recipe(name: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """The raw values of a recipe: a file, a run folder, the name of a shipped one, or a mapping."""
    if isinstance(name, Mapping):
        return json.loads(json.dumps(name))
    try:
        raw = yaml.safe_load(_read_text(str(name)))
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {name}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"recipe {name}: expected a mapping of keys to values, got {type(raw).__name__}")
    return raw


def parse_override(text: str) -> tuple[str, Any]:
    """`key.path=value` to (key path, value); the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {text!r}: expected key.path=value, for instance train.batch_size=4")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"override {key}: {value!r} is not valid YAML; quote it") from None


def override(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set `raw["a"]["b"]...` for key "a.b...."; missing mappings are made; list places are numbers."""
    place: Any = raw
    parts = key.split(".")
    for depth, part in enumerate(parts):
        where = ".".join(parts[:depth]) or "recipe"
        last = depth == len(parts) - 1
        if isinstance(place, list):
            if not part.isdigit() or int(part) >= len(place):
                raise ConfigError(f"override {key}: {where} is a list of {len(place)}; {part!r} is none of its places")
            if last:
                place[int(part)] = value
            else:
                place = place[int(part)]
        elif isinstance(place, dict):
            if last:
                place[part] = value
            else:
                following = place.get(part)
                if isinstance(following, str) and part in {"checkpoint", "encoder_checkpoint"}:
                    following = {"path": following}  # the shorthand of a checkpoint, spelled out
                if following is None:
                    following = {}
                place[part] = following
                place = following
        else:
            raise ConfigError(f"override {key}: {where} is the value {place!r}, not a mapping")


def load_recipe(name: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read, override and validate a recipe.

    Raises:
        ConfigError: one line per mistake, each naming the key, with the nearest known key for an unknown one.
    """
    raw = read_recipe(name)
    for key, value in (overrides or {}).items():
        override(raw, key, value)
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(_lines(error))) from None
    return _with_absolute_paths(recipe)


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML: every key, so that it stays the same when defaults change."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def recipe_digest(recipe: Recipe) -> str:
    """SHA-256 of the resolved recipe's canonical JSON."""
    return sha256(json.dumps(recipe.model_dump(mode="json"), sort_keys=True).encode())


def recipe_schema() -> dict[str, Any]:
    """JSON schema of a recipe."""
    return Recipe.model_json_schema()


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) is not None or isinstance(annotation, types.UnionType):
        for argument in typing.get_args(annotation):
            yield from _models_in(argument)


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """Keys allowed where an unknown key stood. Tags of unions in a pydantic location are passed over."""
    here: list[type[BaseModel]] = [Recipe]
    for part in location[:-1]:
        deeper = [
            m for model in here if part in model.model_fields for m in _models_in(model.model_fields[part].annotation)
        ]
        here = deeper or here
    return sorted({key for model in here for key in model.model_fields})


def _clean_location(location: tuple[Any, ...]) -> str:
    """The key as the user writes it: union tags, which pydantic adds, are left out."""
    here: list[type[BaseModel]] = [Recipe]
    shown: list[str] = []
    for part in location:
        fields = [model.model_fields[part] for model in here if part in model.model_fields]
        if fields:
            here = [m for field in fields for m in _models_in(field.annotation)]
            shown.append(str(part))
        elif isinstance(part, int) or not here or part == location[-1]:
            shown.append(str(part))
    return ".".join(shown) or "recipe"


def _lines(error: ValidationError) -> Iterator[str]:
    for problem in error.errors():
        location = problem["loc"]
        key = _clean_location(location)
        if problem["type"] == "extra_forbidden":
            yield f"recipe: unknown key {key!r}{nearest(str(location[-1]), _known_keys(location))}"
        elif problem["type"] == "missing":
            yield f"recipe: key {key!r} is missing"
        else:
            message = problem["msg"].removeprefix("Value error, ")
            message = message[0].lower() + message[1:]
            shown = repr(problem["input"])
            yield f"recipe: {key}: {message}, got {shown if len(shown) <= 80 else shown[:77] + '...'}"


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve())


def _with_absolute_paths(recipe: Recipe) -> Recipe:
    """Paths made absolute, so that the saved recipe means the same files wherever it is run."""
    raw = recipe.model_dump(mode="python")
    for role in ("student", "teacher"):
        network = raw.get(role)
        if network is None:
            continue
        for key in ("checkpoint", "encoder_checkpoint"):
            if network[key] is not None:
                network[key]["path"] = _absolute(network[key]["path"])
        file, colon, function = network["model"].rpartition(":")
        if colon and file.endswith(".py"):
            network["model"] = f"{_absolute(file)}:{function}"
    data = raw["data"]
    if data.get("root"):
        data["root"] = _absolute(data["root"])
    return Recipe.model_validate(raw)
