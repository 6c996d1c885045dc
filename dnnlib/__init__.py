"""Helpers that need no torch: attribute dictionaries, downloads, safe unpickling."""

from .util import EasyDict as EasyDict
