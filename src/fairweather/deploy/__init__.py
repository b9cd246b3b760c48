"""From a trained generator to a model folder that restoring can open; every export is compared with its source."""
