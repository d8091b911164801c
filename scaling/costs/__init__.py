"""What computing and sending cost: seconds of each part of a step, of a model on a machine."""
