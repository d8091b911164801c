"""How an expert module is named where it is computed. Needs no torch."""

# Its layer, and its slot in the layer.
ExpertKey = tuple[int, int]
