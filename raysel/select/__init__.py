"""Selectors that people use next to the published methods: nearest rows, cluster shares, density ratio, scores."""
