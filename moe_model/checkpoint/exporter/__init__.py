"""A model of ours as the Hugging Face folder that its authors would publish.

layout says which tensors there are and of which of ours each consists, shards writes files of them, texts
what is no tensor; job puts all together.
"""

from moe_model.checkpoint.exporter.job import ExportOptions as ExportOptions
from moe_model.checkpoint.exporter.job import Model as Model
from moe_model.checkpoint.exporter.job import export_checkpoint as export_checkpoint
