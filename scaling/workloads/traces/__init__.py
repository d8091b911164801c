"""Formats of traces: when requests came to a service, and how long they were; a module for each."""
