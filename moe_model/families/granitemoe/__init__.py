"""Granite's mixtures of experts: four multipliers, and in some a shared expert."""
