"""Our engine beside what a user would take instead, in one run: `python -m benchmarks.peers`.

weights, serve, llama_peer and transformers_peer run in the peers' own environment, which install makes. jobs
is what both environments share, and knows the standard library only. All else runs in the project's.
"""
