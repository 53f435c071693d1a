"""HOW it is computed: the kernels of :mod:`gpubce.spec` on a CPU and on CUDA.

Both packages hold the same three files. ``compile`` turns a recipe into machine code and keeps it, ``kernels`` says
who works on which element, ``launch`` runs a job.
"""
