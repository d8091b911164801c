"""From uneven machines, a model and its routing to a placement, options and a prediction. Pure."""
