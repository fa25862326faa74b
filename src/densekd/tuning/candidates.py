"""What a sweep tries: every method's terms with their weights multiplied and their temperatures replaced."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from densekd.config import CompareMethod
from densekd.errors import ConfigError
from densekd.losses.catalog import loss_options
from densekd.study import Method
from densekd.study.arguments import entries, is_number
from densekd.training.specs import TermSpec

FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class Candidate:
    """One setting of one method.

    Attributes:
        label: of its line in the sweep's study.
        method: label of the method it is a setting of.
        factor: what every weight of the method's terms is multiplied by.
        temperature: of the terms whose loss has one; None: as given.
        terms: what it trains with.
    """

    label: str
    method: str
    factor: float
    temperature: float | None
    terms: tuple[TermSpec, ...]

    def as_method(self, where: str) -> CompareMethod:
        """The candidate as a part of a recipe."""
        return CompareMethod.model_validate({"terms": self.terms, "where": where})


def candidates(method: Method, factors: Sequence[float], temperatures: Sequence[float]) -> list[Candidate]:
    """Every factor with every temperature; methods without a temperature have the factors alone.

    Raises:
        ConfigError: factors or temperatures that are none, alike in six digits, not positive or not finite.
    """
    factors = _checked("factors", factors, required=True)
    temperatures = _checked("temperatures", temperatures, required=False)
    warm = any("temperature" in loss_options(term.method) for term in method.terms)
    found = []
    for temperature in temperatures if warm and temperatures else (None,):
        for factor in factors:
            label = f"{method.name}-w{factor:g}" + ("" if temperature is None else f"-t{temperature:g}")
            terms = tuple(_changed(term, factor, temperature) for term in method.terms)
            found.append(Candidate(label, method.name, factor, temperature, terms))
    return found


def _changed(term: TermSpec, factor: float, temperature: float | None) -> TermSpec:
    changes: dict[str, object] = {"weight": float(f"{term.weight * factor:.6g}")}
    if temperature is not None and "temperature" in loss_options(term.method):
        changes["options"] = {**term.options, "temperature": temperature}
    return term.model_copy(update=changes)


def _checked(name: str, values: Sequence[float], *, required: bool) -> list[float]:
    found = entries(f"--{name}", values, "different positive numbers")
    good = all(is_number(value) and math.isfinite(value) and value > 0 for value in found)
    # A label and a weight have six digits: what is alike in them is one setting.
    if not good or len({f"{value:g}" for value in found}) < len(found) or (required and not found):
        shown = ",".join(map(str, found))
        raise ConfigError(
            f"--{name} {shown}: expected different positive numbers with commas between (six digits count)"
        )
    return found
