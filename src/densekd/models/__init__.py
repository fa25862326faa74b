"""Networks by reference, their weights, and what they cost."""

from densekd.models.build import build_model as build_model
from densekd.models.checkpoint import load_checkpoint as load_checkpoint
from densekd.models.digest import weights_digest as weights_digest
from densekd.models.measure import Measured as Measured
from densekd.models.measure import measure as measure
from densekd.models.sizes import input_multiple as input_multiple
from densekd.models.sizes import output_at_any_size as output_at_any_size
from densekd.models.specs import CheckpointSpec as CheckpointSpec
from densekd.models.specs import ModelSpec as ModelSpec
