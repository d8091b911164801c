"""Folders as Hugging Face libraries write them: config.json, safetensors in one file or many, a tokenizer."""
