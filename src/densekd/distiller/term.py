"""What to distil: one loss between a student tap and a teacher tap."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from densekd.errors import ArgumentError, DtypeError
from densekd.losses import DistillationLoss


class Term:
    """One distillation loss between a student tap and a teacher tap.

    Args:
        loss: a `densekd.losses` module, or an own subclass of `DistillationLoss`; one object per term.
        student, teacher: taps: `logits`, `output`, a module's dotted path, or one item of what it
            returns (`encoder[4]`).
        weight: factor of the loss in the sum, not negative.
        name: defaults to `<loss>:<student tap>`, as in `channelwise:logits`.

    Raises:
        ArgumentError: not a `DistillationLoss`, or one without a name; a tap that is no text; an empty name; a
            weight that is negative or not finite.

    >>> from densekd.losses import ChannelWise
    >>> Term(ChannelWise(), weight=3.0).name
    'channelwise:logits'
    >>> Term(ChannelWise(), student="encoder.layer4", teacher="encoder.layer4", weight=50.0, name="features").name
    'features'
    """

    def __init__(
        self,
        loss: DistillationLoss,
        *,
        student: str = "logits",
        teacher: str = "logits",
        weight: float = 1.0,
        name: str | None = None,
    ) -> None:
        if not isinstance(loss, DistillationLoss):
            raise ArgumentError(
                "a Term needs a loss object from densekd.losses (or an own subclass of DistillationLoss), got "
                f"{_named(loss)}"
            )
        if not isinstance(getattr(loss, "name", None), str):
            raise ArgumentError(
                f"the loss {type(loss).__name__} has no name: expected a text in its class, for instance "
                f"name = {type(loss).__name__.lower()!r}"
            )
        for side, tap in (("student", student), ("teacher", teacher)):
            if not isinstance(tap, str):
                raise DtypeError(
                    f"Term: {side} must be the name of a tap, got {_named(tap)}; expected 'logits', 'output', a "
                    "module's dotted path as named_modules() gives it ('encoder.layer4'), or one item of what it "
                    "returns ('encoder[4]')"
                )
        if name is not None and not isinstance(name, str):
            raise DtypeError(f"Term: name must be a text, got {_named(name)}; leave it out for '<loss>:<student tap>'")
        if name == "":
            raise ArgumentError("Term: name is empty; give the term a name, or leave it out for '<loss>:<student tap>'")
        self.loss = loss
        self.student = student
        self.teacher = teacher
        self.name = f"{loss.name}:{student}" if name is None else name
        self.weight = checked_weight(weight, self.name)

    def __repr__(self) -> str:
        return (
            f"Term({self.loss!r}, student={self.student!r}, teacher={self.teacher!r}, weight={self.weight}, "
            f"name={self.name!r})"
        )


def _named(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__} itself: write {value.__name__}()"
    return f"a {type(value).__name__}"


def checked_weight(weight: float, name: str) -> float:
    """The weight as a float.

    Raises:
        ArgumentError: negative, NaN or infinite.
    """
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise ArgumentError(f"the weight of term {name!r} must be a number, got a {type(weight).__name__}")
    if not math.isfinite(weight) or weight < 0:
        raise ArgumentError(f"the weight of term {name!r} must be finite and not negative, got {weight}")
    return float(weight)


def check_terms(terms: Sequence[Term]) -> tuple[Term, ...]:
    """The terms as a tuple.

    Raises:
        ArgumentError: none, something that is no Term, equal names, or one loss object in two terms.
    """
    if isinstance(terms, Term) or not isinstance(terms, Sequence):
        raise ArgumentError(f"terms must be a list of Term, got {_named(terms)}")
    if not terms:
        raise ArgumentError("terms is empty: expected at least one Term(ChannelWise())")
    for term in terms:
        if not isinstance(term, Term):
            raise ArgumentError(f"terms must hold Term objects, got {_named(term)}; write Term({_example(term)})")
    names = [term.name for term in terms]
    for name in names:
        if names.count(name) > 1:
            raise ArgumentError(f"{names.count(name)} terms are called {name!r}: give each its own name=")
    keys = [module_key(name) for name in names]
    for name, key in zip(names, keys, strict=True):
        if not key or hasattr(nn.ModuleDict, key) or keys.count(key) > 1:
            raise ArgumentError(f"a term cannot be called {name!r} here: it is empty, reserved, or too like another")
    owners: dict[int, str] = {}
    for term in terms:
        other = owners.setdefault(id(term.loss), term.name)
        if other != term.name:
            raise ArgumentError(
                f"terms {other!r} and {term.name!r} share one loss object: a loss may keep shapes and parameters of "
                "its term, so give each term its own"
            )
    return tuple(terms)


def module_key(name: str) -> str:
    """The name of the term's module: as the term's, without the dots a module's name must not hold."""
    return name.replace(".", "/")


def _example(term: object) -> str:
    return type(term).__name__ + "()" if isinstance(term, DistillationLoss) else "loss"
