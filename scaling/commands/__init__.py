"""What the commands do; their arguments are in coordinator/commands/, which are quick to load."""
