"""The version, in a module that imports nothing: the package root, the artifact and the command line read it here."""

__version__ = "0.1.0"
