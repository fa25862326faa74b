"""Runs: one training with one recipe and one seed, owning a folder."""

from densekd.runs.execute import distill as distill
from densekd.runs.execute import train as train
from densekd.runs.folder import Run as Run
