"""Helpers that need no torch: attribute dictionaries, downloads, safe unpickling."""

from dnnlib.util import EasyDict as EasyDict
