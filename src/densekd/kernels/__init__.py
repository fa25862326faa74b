"""Faster ways to compute what `densekd.functional` defines; chosen there, never imported by users."""

from __future__ import annotations

from densekd.kernels.loading import triton_obstacle

__all__ = ["triton_obstacle"]
