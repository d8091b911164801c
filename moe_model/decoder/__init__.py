"""The decoder that published families have in common: what differs is data, and all else follows from it."""
