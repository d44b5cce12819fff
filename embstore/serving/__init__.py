"""Versions put to use: nearest neighbours among a feature's values (``search``)."""
