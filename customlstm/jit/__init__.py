"""Cells that a user writes in Python: traced, written out as C++, built once, and kept in a cache."""
