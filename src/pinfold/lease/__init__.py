"""Leases: whose a fold is, whether they live, and what becomes of it when they do not.

The facts are on the cgroups themselves, as extended attributes and a lock, so there is no state file to go stale.
"""
