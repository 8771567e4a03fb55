"""Shared tools without Ray. Modules here import nothing of raysel but its errors and each other."""
