"""The search for images, within a certified radius, at which the smoothed classifier decides otherwise.

Imports what certification does, and certification.
"""

from idrc_jax.audit.job import audit_certificates, cells

__all__ = ["audit_certificates", "cells"]
