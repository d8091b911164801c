"""Checkpoints whose bytes are elsewhere: folders of sparse files, filled block by block as they are read."""
