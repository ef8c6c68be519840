"""mora-data: from a preference dataset to max-margin, multi-objective preference pairs."""

__version__ = "0.1.0"
