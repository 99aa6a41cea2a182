"""Distillation against the price of training the student alone, and against the peers: ``make bench``."""
