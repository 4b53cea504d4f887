"""The version, read nowhere else: importlib.metadata costs more than all the rest."""

VERSION = "0.1.0"
