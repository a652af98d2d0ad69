"""What every room stands on: checks of arguments, files and tables that are whole or not there, progress, budgets,
and numerics that know no classifier.

Imports no other room, and no JAX.
"""
