"""Softened maps on a page: for every term the channels that moved most, of the teacher and of the student."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup
from torch import Tensor

from densekd.looks.pictures import unpacked
from densekd.looks.records import MapsFile, ShownChannel, TermMaps
from densekd.report.look_drawing import enlarged, gradient, heat_picture, photograph, webp
from densekd.report.page import part
from densekd.report.pictures import embedded
from densekd.report.tables import Cell, Column, Table
from densekd.report.words import MINUS, number, share

_GRID = "display:grid;grid-template-columns:repeat(auto-fit,minmax(min(46%,10.5rem),1fr));gap:.4rem .8rem"
_MOST_ROWS = 40
_TEACHER = "teacher"


def maps_body(record: MapsFile, held: Mapping[str, Tensor]) -> Markup:
    """All terms.

    Args:
        record: `maps.json`.
        held: planes and images that it names.
    """
    notes = Markup().join(Markup('<p class="soft">{}.</p>').format(note) for note in record.notes)
    if not record.terms:
        return notes or Markup('<p class="soft">No term whose channels correspond.</p>')
    body = Markup(
        "<p>Each channel of a map, softened over the positions of an image, says where that channel sees something: "
        "its values are shares that add up to 1. Channel-wise distillation pulls the student's shares to the "
        "teacher's; KL, the divergence from the teacher, is what it lowers. Entropy says how spread out a map is, "
        "from 0 (one position has it all) to that of an even map.</p>"
        '<p class="soft">Looked at {}. Networks in evaluation mode. Brightness is the share of a position as a '
        "multiple of the even share; in each row the colours mean the same for all networks.</p>"
    ).format(record.rule)
    return body + notes + Markup().join(_term(place, term, record, held) for place, term in enumerate(record.terms))


def _term(place: int, term: TermMaps, record: MapsFile, held: Mapping[str, Tensor]) -> Markup:
    taps = term.student if term.student == term.teacher else f"student {term.student}, teacher {term.teacher}"
    size = f"{term.size[0]}x{term.size[1]}"
    head = Markup("<h3>{}</h3>").format(f"{term.name} ({taps}; {len(term.channels)} channels of {size})")
    soft = f"Softened at temperature {term.temperature:g}, as the term itself does."
    if not term.softens:
        soft = (
            f"{term.method} does not soften over positions; the maps that it compares are shown as channel-wise "
            f"distillation would see them, at temperature {term.temperature:g}."
        )
    body = head + Markup("<p>{} {}</p>").format(_summary(term, record), soft)
    body += part("table", _table(term, record), "")
    return body + Markup().join(_channel(place, term, one, record, held) for one in term.shown)


def _summary(term: TermMaps, record: MapsFile) -> str:
    """How far the student is from the teacher over all channels, first and last."""
    names = list(term.kl)
    means = [sum(term.kl[name]) / len(term.kl[name]) for name in names]
    told = ", ".join(
        f"{divergence_words(mean)} for the {record.networks[name]}" for name, mean in zip(names, means, strict=True)
    )
    nearer = sum(new < old for old, new in zip(term.kl[names[0]], term.kl[names[-1]], strict=True))
    return (
        f"Mean KL from the teacher over all channels, in nats: {told}; {nearer} of {len(term.channels)} channels are "
        f"nearer to the teacher's than those of the {record.networks[names[0]]}."
    )


def _table(term: TermMaps, record: MapsFile) -> Table:
    """Every channel, or of many the shown ones."""
    names = list(term.kl)
    every = len(term.channels) <= _MOST_ROWS
    places = range(len(term.channels)) if every else [one.channel for one in term.shown]
    columns = [Column("channel")]
    told = record.networks
    columns += [Column(f"KL {name}", True, f"nats, from the teacher's, of the {told[name]}") for name in names]
    columns += [Column("change", True, "of KL, last against first")]
    columns += [
        Column(f"entropy {name}", True, f"of the {told[name]}, as a share of an even map's")
        for name in (_TEACHER, *names)
    ]
    rows = []
    for place in places:
        change = term.kl[names[-1]][place] - term.kl[names[0]][place]
        rows.append(
            [
                Cell(term.channels[place]),
                *(Cell(divergence_words(term.kl[name][place]), key=term.kl[name][place]) for name in names),
                # Nearer to the teacher is the good direction.
                Cell(change_words(change), key=change, tone="up" if change < 0 else "down" if change > 0 else ""),
                *(_spread(term.entropy[name][place], term.log_positions) for name in (_TEACHER, *names)),
            ]
        )
    which = "every channel" if every else f"the channels shown, of {len(term.channels)}"
    even = number(term.log_positions, 4)
    return Table(f"{term.name}: {which}; KL in nats, entropy as a share of {even} nats, an even map's", columns, rows)


def _spread(entropy: float, even: float) -> Cell:
    portion = entropy / even if even > 0 else 1.0
    return Cell(share(portion), key=portion, help=f"{number(entropy, 4)} nats")


def _channel(place: int, term: TermMaps, shown: ShownChannel, record: MapsFile, held: Mapping[str, Tensor]) -> Markup:
    """One channel's row: the image, then its map by every network, on one scale."""
    seen = record.images[shown.image]
    image = photograph(unpacked(held[seen.file]))
    name = term.channels[shown.channel]
    whole = webp(enlarged(image), lossless=False)
    size = enlarged(image).size
    alt = f"Image {seen.name}"
    figures = [embedded(whole, "image/webp", width=size[0], height=size[1], alt=alt, caption="image")]
    for key in (_TEACHER, *term.kl):
        title = record.networks[key]
        drawn = heat_picture(image, held[f"{place}.{shown.channel}.{key}"], shown.low, shown.high)
        numbers = f"entropy {number(shown.entropy[key], 4)}"
        if key in shown.kl:
            numbers += f", KL {divergence_words(shown.kl[key])}"
        peak = _where(held[f"{place}.{shown.channel}.{key}"])
        figures.append(
            embedded(
                webp(drawn, lossless=False),
                "image/webp",
                width=drawn.width,
                height=drawn.height,
                alt=f"Where {title} sees {name} in {seen.name}: brightest {peak}; {numbers}",
                caption=f"{title}: {numbers}",
            )
        )
    first, *_, last = term.kl
    change = shown.kl[last] - shown.kl[first]
    direction = "nearer to" if change < 0 else "away from"
    head = Markup("<p><strong>{}</strong> on {}: KL {} ({} the teacher)</p>").format(
        name, seen.name, change_words(change), direction
    )
    scale = Markup(
        '<p class="soft" style="display:flex;gap:.5rem;align-items:center">{}<span style="height:.6rem;width:8rem;'
        'background:linear-gradient(90deg, {})"></span>{} times the even share</p>'
    ).format(number(shown.low, 2), Markup(gradient()), number(shown.high, 3))
    return head + Markup('<div style="{}">{}</div>').format(Markup(_GRID), Markup().join(figures)) + scale


def _where(plane: Tensor) -> str:
    """In words where a plane is largest."""
    height, width = plane.shape
    place = int(plane.argmax())
    down, right = (place // width) / max(1, height - 1), (place % width) / max(1, width - 1)
    rows = "at the top" if down < 1 / 3 else "in the middle" if down < 2 / 3 else "at the bottom"
    columns = "left" if right < 1 / 3 else "centre" if right < 2 / 3 else "right"
    return f"{rows}, {columns}"


def change_words(change: float) -> str:
    """A change of a divergence, with the digits of `divergence_words`."""
    return f"{MINUS if change < 0 else '+'}{divergence_words(abs(change))}"


def divergence_words(value: float) -> str:
    """A divergence to three digits, also where the last of them is 0: numbers of a column are equally exact."""
    return f"{value:#.3g}".rstrip(".")
