"""Qwen3-MoE: heads of queries and keys are normed, many small experts."""
