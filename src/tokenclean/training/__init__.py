"""Fine-tuning on the selected tokens."""
