"""Post-training quantization beyond choosing ranges: what keeps hard models accurate, and the sweep over settings."""
