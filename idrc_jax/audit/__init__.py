"""The search for images, within a certified radius, at which the smoothed classifier decides otherwise.

Imports what certification does, and certification.
"""

from idrc_jax.audit.job import audit_certificates, cells
from idrc_jax.audit.settings import Settings

__all__ = ["Settings", "audit_certificates", "cells"]
