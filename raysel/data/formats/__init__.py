"""File formats, one module each; :data:`raysel.registry.FORMATS` lists them."""
