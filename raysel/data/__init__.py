"""Rows with stable ids, and the vectors made from them."""
