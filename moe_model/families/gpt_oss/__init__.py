"""gpt-oss: windows in every other layer, sinks, biases, experts with limits."""
