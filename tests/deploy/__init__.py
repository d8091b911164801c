"""Checks of what deploy/ holds."""
