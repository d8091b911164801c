"""DeepSeek-V3, Moonlight, Kimi-K2: latent attention, shared experts, experts chosen by corrected sigmoids."""
