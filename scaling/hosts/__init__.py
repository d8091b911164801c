"""Hosts on one machine: network namespaces with links between them, and a real Ray cluster over them."""
