"""DeepSeek-V2 and V2-Lite: latent attention, shared experts, experts chosen by softmax, in groups."""
