"""A teacher's maps, stored once and read back: the format, its writer and reader, and the source for a distiller."""

from __future__ import annotations

from densekd.teacher_cache.claim import is_building as is_building
from densekd.teacher_cache.encoding import ENCODINGS as ENCODINGS
from densekd.teacher_cache.encoding import Encoding as Encoding
from densekd.teacher_cache.header import Header as Header
from densekd.teacher_cache.header import read_header as read_header
from densekd.teacher_cache.key import CacheKey as CacheKey
from densekd.teacher_cache.reader import MapReader as MapReader
from densekd.teacher_cache.source import CachedTeacher as CachedTeacher
from densekd.teacher_cache.summary import SoftenedError as SoftenedError
from densekd.teacher_cache.summary import Summary as Summary
from densekd.teacher_cache.writer import MapWriter as MapWriter
