"""Recipes: one YAML file that describes a training completely, read, overridden, validated, saved.

A recipe is data: it never names a function to call, except a model (see `densekd.models`). Relative paths in it mean
relative to the folder where the command runs; the resolved recipe holds absolute ones.
"""

from densekd.config.compare import CompareMethod as CompareMethod
from densekd.config.compare import CompareSpec as CompareSpec
from densekd.config.compare import FeatureTaps as FeatureTaps
from densekd.config.compare import Where as Where
from densekd.config.distill import CacheSpec as CacheSpec
from densekd.config.distill import DistillSpec as DistillSpec
from densekd.config.load import dump_recipe as dump_recipe
from densekd.config.load import load_recipe as load_recipe
from densekd.config.load import recipe_digest as recipe_digest
from densekd.config.load import recipe_schema as recipe_schema
from densekd.config.published import PublishedResult as PublishedResult
from densekd.config.read import override as override
from densekd.config.read import parse_override as parse_override
from densekd.config.read import read_recipe as read_recipe
from densekd.config.recipe import PreflightSpec as PreflightSpec
from densekd.config.recipe import Recipe as Recipe
from densekd.config.recipe import TeacherSpec as TeacherSpec
from densekd.config.report import ReportSpec as ReportSpec
from densekd.config.shipped import shipped_recipes as shipped_recipes
from densekd.config.track import TrackSpec as TrackSpec
