"""Weights and temperatures, swept the same way for every method, away from the validation set."""

from densekd.tuning.candidates import Candidate as Candidate
from densekd.tuning.candidates import candidates as candidates
from densekd.tuning.sweep import Tuned as Tuned
from densekd.tuning.sweep import tune as tune
