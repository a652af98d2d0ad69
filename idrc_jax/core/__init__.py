"""What every room stands on: checks of arguments, files that are whole or not there, progress, time limits.

Imports no other room, and no JAX.
"""
