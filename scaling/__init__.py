"""Scaling experiments: measure, plan, simulate. No part of the server, which does not import it."""
