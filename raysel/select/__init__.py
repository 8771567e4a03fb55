"""Selectors next to the published methods: random rows, density ratio, cluster shares, nearest rows, duplicates, scores."""
