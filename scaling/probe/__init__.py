"""Measures machines: products, whole steps, disks, and the network between them."""
