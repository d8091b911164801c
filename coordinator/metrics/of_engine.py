"""The metrics that an engine counts, wherever it runs: of its steps, and of what its workers compute."""

from coordinator.metrics.families import ours

# Seconds.
SHORT = (
    *(1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    1.0,
)
_BALANCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_TOKENS = (1.0, *(float(1 << power) for power in range(3, 15)))

ITERATION_TOKENS = ours("iteration_tokens", "Tokens of one step.", edges=_TOKENS)
STEP_SECONDS = ours("step_seconds", "One step of the engine.", "phase", edges=SHORT)
DRAFTED = ours("spec_decode_num_draft_tokens", "Tokens that were drafted and computed.")
ACCEPTED = ours("spec_decode_num_accepted_tokens", "Drafted tokens that were those that were drawn.")
ROUTED = ours("routing_trace_tokens", "Tokens whose routing was recorded, or missed since.", "outcome")
DISPATCH_SECONDS = ours("expert_dispatch_seconds", "One layer's dispatch and answer.", edges=SHORT)
COMBINE_SECONDS = ours("expert_combine_seconds", "Combining a layer's answers.", edges=SHORT)
STRAGGLER_SECONDS = ours("expert_straggler_seconds", "Slowest worker less the median.", edges=SHORT)
COMPUTE_SECONDS = ours("expert_compute_seconds", "A worker's own time for one call.", "rank", edges=SHORT)
PAIRS = ours("expert_tokens", "Token-expert pairs computed.", "rank")
BYTES = ours("expert_bytes", "Bytes of rows and answers.", "direction")
RETRIES = ours("expert_retries", "Calls that were made again.", "reason")
LOSSES = ours("expert_worker_losses", "Workers that were lost.", "reason")
RESTARTS = ours("expert_worker_restarts", "Workers that came back anew.", "reason")
HEDGES = ours("expert_hedges", "Calls that a replica was asked for as well.")
DROPPED = ours("expert_dropped_tokens", "Pairs that were not computed; stays 0.")
REBALANCES = ours("expert_rebalances", "Changes of the placement.")
REBALANCE_SECONDS = ours("expert_rebalance_seconds", "One change of the placement.", edges=SHORT)
BALANCEDNESS = ours(
    "expert_balancedness",
    "Mean over maximum of pairs per worker and step; 1 is even.",
    "phase",
    edges=_BALANCE,
)

FAMILIES = (
    *(ITERATION_TOKENS, STEP_SECONDS, DRAFTED, ACCEPTED, ROUTED),
    *(DISPATCH_SECONDS, COMBINE_SECONDS, STRAGGLER_SECONDS),
    *(COMPUTE_SECONDS, PAIRS, BYTES, RETRIES, LOSSES, RESTARTS, HEDGES, DROPPED, REBALANCES),
    *(REBALANCE_SECONDS, BALANCEDNESS),
)
