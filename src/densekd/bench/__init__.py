"""Measurements that leave a record: what is compared runs interleaved, and only after it was found right."""

from __future__ import annotations
