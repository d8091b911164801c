"""Qwen2-MoE and Qwen1.5-MoE: biases of queries, keys and values, and a shared expert that a gate weighs."""
