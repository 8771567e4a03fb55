"""Shared tools that do not import Ray."""
