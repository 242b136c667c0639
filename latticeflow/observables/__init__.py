"""Observables by name."""
