"""The teacher's maps of a run, computed once and read back: which set they are in, and how it comes to be."""

from densekd.runs.cache.build import Filler as Filler
from densekd.runs.cache.key import key_of as key_of
from densekd.runs.cache.prepare import Wish as Wish
from densekd.runs.cache.prepare import looked_at as looked_at
from densekd.runs.cache.prepare import stored_maps as stored_maps
from densekd.runs.cache.sets import SetFolder as SetFolder
from densekd.runs.cache.sets import sets_under as sets_under
from densekd.runs.cache.stored import Stored as Stored
