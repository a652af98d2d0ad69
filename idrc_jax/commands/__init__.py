"""The installed commands, a module each, with a function `main`.

Imports all rooms; nothing imports it.
"""
