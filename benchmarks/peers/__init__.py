"""Our engine beside what a user would take instead, in one run: `python -m benchmarks.peers`.

__main__    the rounds, the table, the JSON line          in the project's own environment
ours, process, verdict, install                           in the project's own environment
jobs        what both environments say to each other      standard library only
serve, weights, llama_peer, transformers_peer             in the peers' environment
"""
