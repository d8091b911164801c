"""Routing: traces that a server recorded, how loaded experts are, and rows drawn as a router would."""
