"""OLMoE: queries and keys are normed over all heads together, and may be clamped."""
