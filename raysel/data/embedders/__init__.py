"""Embedders by name, one per file. A new one is its own file and one line in :mod:`raysel.registry`."""
