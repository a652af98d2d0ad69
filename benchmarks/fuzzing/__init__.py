"""Damaged files of every kind, made by a coverage-guided fuzzer, and what reading them does."""
