"""WHAT is computed: every formula and the order of every addition, once.

``primitives``, ``subroutines``, ``targets`` and what is built of them (``elements``, ``quantities``, ``histogram``) know
Numba, because both backends compile them; the other modules are plain Python.
"""
