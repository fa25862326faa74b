"""The intra-class loss by matrix products against a loop over the classes; one bench record.

    python benchmarks/intraclass_loop.py --rounds 5

Forward and backward on (8, 512, 64, 64) with 19 classes, one thread, interleaved, medians. The loop is the published
formula written down as it reads: for every class a mask of the size of the map, twice. Both values must agree to 1e-6
(relative) before anything is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from densekd.bench import runner
from densekd.cli.guard import guarded
from densekd.errors import ArgumentError
from densekd.files import write_json
from densekd.functional import intraclass_mse
from densekd.records import BenchCase, dump

RESULT = Path(__file__).parent / "results" / "intraclass-cpu.json"
CLASSES = 19


def by_loop(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Mean over positions of (cos of a feature with the mean of its class in its image, student - teacher)**2."""

    def variation(maps: Tensor) -> Tensor:
        centres = torch.zeros_like(maps)
        for k in range(CLASSES):
            mask = (labels == k)[:, None].to(maps.dtype).expand_as(maps)
            sums, counts = (mask * maps).sum((2, 3), keepdim=True), mask.sum((2, 3), keepdim=True)
            centres = centres * (1 - mask) + mask * (sums / (counts + 1e-6))
        return torch.nn.functional.cosine_similarity(maps, centres, dim=1)

    return (variation(student) - variation(teacher)).square().mean()


def main() -> None:
    """Check, time, write the record, print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shape", type=lambda text: [int(part) for part in text.split(",")], default=[8, 512, 64, 64])
    parser.add_argument("--result", type=Path, default=RESULT)
    given = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(given.shape, generator=generator) for _ in range(2))
    student.requires_grad_()
    labels = torch.randint(0, CLASSES, (given.shape[0], *given.shape[2:]), generator=generator)
    forms: dict[str, Callable[[], Tensor]] = {
        "loop": lambda: by_loop(student, teacher, labels),
        "products": lambda: intraclass_mse(student, teacher, labels, num_classes=CLASSES),
    }
    load = runner.machine_load()
    with runner.use_threads(given.threads):
        values = {name: float(form().detach()) for name, form in forms.items()}
        exact = float(by_loop(student.detach().double(), teacher.double(), labels))
        errors = {name: abs(value - exact) / exact for name, value in values.items()}
        if max(errors.values()) > 1e-5 or abs(values["loop"] - values["products"]) > 1e-6 * exact:
            raise ArgumentError(f"the two forms disagree: {values}, in float64 {exact}")

        def clear() -> None:
            student.grad = None

        timings = runner.interleave(
            {name: lambda form=form: form().backward() for name, form in forms.items()},
            rounds=given.rounds,
            warmup=1,
            between=clear,
        )
    name = "x".join(map(str, given.shape))
    cases = [
        BenchCase(
            name=name,
            variant=variant,
            median_seconds=timing.median,
            ratio=timings["loop"].median / timing.median,
            error=errors[variant],
            samples=timing.wall,
            extra={
                "cpu_seconds": timing.cpu_median,
                "cpu_ratio": timings["loop"].cpu_median / timing.cpu_median,
                "classes": CLASSES,
            },
        )
        for variant, timing in timings.items()
    ]
    command = f"python benchmarks/intraclass_loop.py --rounds {given.rounds}"
    record = runner.make_record("methods", device="cpu", threads=given.threads, command=command, load=load, cases=cases)
    write_json(given.result, dump(record))
    print(
        f"{name}: {cases[1].ratio:.1f} times the speed of the loop (CPU time {cases[1].extra['cpu_ratio']:.1f} times)"
    )


if __name__ == "__main__":
    guarded(main)()
