"""A sweep: an experiment's cells, each run in every round, and what was observed of each run.

The parts of `split_ms`, of a mean step: `dispatch`, rows sent to workers until their answers are there, all
layers; `combine`, adding the answers up; `rest`, all else of the step. Where parts of a step are in flight at
once (`--micro-batches 2`), the first two overlap what is computed meanwhile, and `rest` is what they leave.
"""
