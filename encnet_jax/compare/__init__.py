"""Evaluations of several runs beside each other."""
