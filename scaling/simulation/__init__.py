"""A simulation of coordinators, links, workers and failures, over the product's own decisions."""
