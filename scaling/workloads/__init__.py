"""What is sent: prompts and lengths by a seed, from a text, or as a trace has them."""
