"""Mixtral: RMSNorm, rotary positions, grouped-query attention, SwiGLU experts."""
