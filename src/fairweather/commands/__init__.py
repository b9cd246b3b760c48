"""One file for each verb of the command line: a function whose signature is the verb's options (see cli.py)."""
