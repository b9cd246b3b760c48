"""The commands, one file each: a function whose signature defines the command's options (see cli.py)."""
