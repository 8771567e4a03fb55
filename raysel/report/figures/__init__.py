"""The figures of the pages, one module per subject: numbers in, an SVG string or a PNG file out."""
