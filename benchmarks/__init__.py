"""Measurements, each a module to run. What `expertmesh` tells grpc before its import is told here too."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
