"""The chosen images of `val` as a run keeps them: image, truth, and what each network answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from densekd import files
from densekd.class_map import ClassMap, in_student_classes
from densekd.errors import CheckpointError
from densekd.evaluate import autocast, spread
from densekd.inference import Predictor
from densekd.looks.choice import Choice
from densekd.looks.pictures import ids_file, packed, photo_file
from densekd.looks.records import Answer, PictureRow, PicturesFile, as_file
from densekd.metrics import ConfusionMeter, image_scores
from densekd.models.digest import weights_digest
from densekd.runs.asked_teacher import teacher_input
from densekd.runs.assemble import Parts, load_teacher
from densekd.taps import holds_class_map, main_output, preserved
from densekd.teacher import TeacherImages

COMPARED = 12
"""Images on which student and teacher are compared to find where they differ most."""

Watch = Callable[[int, int], None]


@dataclass
class Answering:
    """A network that answers with class ids of the data, for one image of `val` at a time.

    Args:
        prepare: the network's own normalisation and size, where it has one.
        classes: from its classes to those of the data, where they differ.
    """

    parts: Parts
    network: nn.Module
    title: str
    prepare: Callable[[Tensor], Tensor] | None = None
    classes: ClassMap | None = None
    _found: dict[int, Tensor] = field(default_factory=dict)

    def ids(self, index: int) -> Tensor:
        """Class ids `(H, W)` at the size of the label, as an evaluation finds them."""
        if index not in self._found:
            self._found[index] = self._answer(index)
        return self._found[index]

    def known(self, label: Tensor) -> Tensor:
        """The label with void where the network does not know the class: it could not be right there."""
        unknown = [] if self.classes is None else self.classes.unknown
        return label.masked_fill(torch.isin(label, torch.tensor(unknown)), self.parts.data.ignore_index)

    def _answer(self, index: int) -> Tensor:
        parts, recipe = self.parts, self.parts.recipe
        entry = parts.eval_view()[index]
        predictor = Predictor(
            self.network,
            parts.task,
            recipe.evaluation,
            most=recipe.train.evaluate_batch_size,
            channels_last=recipe.runtime.channels_last,
            prepare=self.prepare,
        )
        size = (int(entry["label"].shape[0]), int(entry["label"].shape[1]))
        mapped = in_student_classes(self.network, self.classes, parts.task.num_outputs)
        with mapped, torch.no_grad(), autocast(parts.device, recipe.runtime.precision):
            return next(predictor.ids(entry["image"][None].to(parts.device), [size])).cpu()


@contextmanager
def looked_at(*networks: nn.Module | None) -> Iterator[None]:
    """Inside the block networks answer as in an evaluation; afterwards they and all random states are as before."""
    found = [network for network in networks if network is not None]
    with preserved(*found):
        for network in found:
            network.eval()
        yield


def teacher_again(parts: Parts, digest: str) -> nn.Module:
    """The recipe's teacher, built anew: during training nothing held the network as its library knows it.

    Raises:
        CheckpointError: its weights are other ones than at the start.
    """
    with torch.random.fork_rng(devices=[]):
        teacher = parts.to_device(load_teacher(parts.recipe, parts.teacher_outputs(), [])).eval()
    if digest and weights_digest(teacher) != digest:
        raise CheckpointError("the teacher's weights are other ones than when the run began")
    return teacher


def answering_teacher(parts: Parts, teacher: nn.Module) -> Answering | None:
    """The teacher in the classes of the data; None where its output is no class map."""
    own, spec = parts.teacher_classes(), teacher_input(parts.recipe)
    prepare = None if spec is None else TeacherImages(spec).to(parts.device)
    with torch.no_grad(), autocast(parts.device, parts.recipe.runtime.precision):
        output = teacher(parts.teacher_example(1))
    if not holds_class_map(output) or main_output(output).shape[1] != parts.teacher_outputs():
        return None
    return Answering(parts, teacher, "teacher", prepare, None if own is None else own.map)


def differing(parts: Parts, one: Answering, other: Answering, watch: Watch) -> dict[int, float]:
    """By image, of a few spread over `val`: the share of its labelled pixels where two networks answer differently."""
    shares = {}
    indices = spread(len(parts.data.val), COMPARED)
    for done, index in enumerate(indices):
        watch(done, len(indices))
        counted = parts.data.val.load(index).label != parts.data.ignore_index
        if bool(counted.any()):
            apart = one.ids(index) != other.ids(index)
            shares[index] = float((apart & counted).sum() / counted.sum())
    return shares


def picture_files(
    parts: Parts,
    choice: Choice,
    networks: Mapping[str, Answering],
    notes: list[str],
    watch: Watch,
    of: Mapping[str, tuple[str, str]] | None = None,
) -> dict[str, bytes]:
    """`pictures.json`, and in `pictures.safetensors` the files that it names.

    Args:
        networks: by the key that begins the names of their files.
        notes: what is missing, and why.
        of: by network the name of its run and the digest of its student's file, where they are of several runs.
    """
    content: dict[str, bytes] = {}
    rows = []
    for place, index in enumerate(choice.indices):
        watch(place, len(choice.indices))
        row, found = _row(parts, place, index, choice.why[index], networks)
        rows.append(row)
        content |= found
    watch(len(choice.indices), len(choice.indices))
    record = PicturesFile(
        rule=choice.rule,
        classes=list(parts.data.classes),
        palette=[(color[0], color[1], color[2]) for color in parts.data.palette],
        networks={key: network.title for key, network in networks.items()},
        rows=rows,
        runs={key: name for key, (name, _) in (of or {}).items()},
        weights={key: digest for key, (_, digest) in (of or {}).items()},
        notes=notes,
    )
    return {"pictures.json": as_file(record), "pictures.safetensors": packed(content)}


def _row(
    parts: Parts, place: int, index: int, why: str, networks: Mapping[str, Answering]
) -> tuple[PictureRow, dict[str, bytes]]:
    data, classes = parts.data, len(parts.data.classes)
    image, label = data.val.load(index)
    label = label.long()
    names = {"image": f"image-{place:02}.jpg", "truth": f"truth-{place:02}.png"}
    content = {names["image"]: photo_file(image), names["truth"]: ids_file(label, classes)}
    answers = {}
    for key, network in networks.items():
        ids = network.ids(index)
        scores = image_scores(ConfusionMeter(classes, data.ignore_index).update(ids, network.known(label)))
        file = f"{key}-{place:02}.png"
        content[file] = ids_file(ids, classes)
        answers[key] = Answer(file=file) if scores is None else Answer(file=file, miou=scores[0], accuracy=scores[1])
    row = PictureRow(
        index=index,
        name=files.as_text(data.val.name_of(index)),
        why=why,
        width=int(image.shape[2]),
        height=int(image.shape[1]),
        answers=answers,
        **names,
    )
    return row, content
