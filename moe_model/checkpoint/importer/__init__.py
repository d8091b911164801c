"""Files of others -> our checkpoint format. The only part of the product that reads `.pt`."""

from moe_model.checkpoint.importer.job import ImportOptions, ImportReport, import_checkpoint
from moe_model.checkpoint.importer.source_config import read_model_config

__all__ = ["ImportOptions", "ImportReport", "import_checkpoint", "read_model_config"]
