"""How the model's arithmetic is done: with torch anywhere, or with our own C on a CPU."""
