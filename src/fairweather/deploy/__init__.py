"""Export of trained generators as model folders, and their quantization; each result is compared with its source."""
