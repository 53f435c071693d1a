"""WHAT is computed: every formula and the order of every addition, once.

``primitives`` and ``elements`` know Numba, because both backends compile them; the other modules are plain Python.
"""
