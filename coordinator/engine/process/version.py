"""What an engine and its fronts must have in common."""

from importlib import metadata

# Counts changes of what they say to each other within one version of the product.
_LANGUAGE = 1
VERSION = f"{metadata.version('expertmesh')}/{_LANGUAGE}"
