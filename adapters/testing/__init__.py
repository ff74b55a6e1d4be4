"""Engines to test against, shipped with the adapters."""
