"""WHAT is computed: every formula and the order of every addition, once.

``primitives``, ``subroutines`` and ``processors`` know Numba, as do ``elements``, ``quantities`` and ``histogram``,
which are built of them, because both backends compile them; the other modules are plain Python.
"""
