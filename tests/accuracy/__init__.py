"""How far the package's results are from the truth, over every input where there are few enough to try them all.

``reference`` holds the truth, ``comparison`` what is counted, ``sweep`` which inputs are gone through, ``journal`` what
lets a sweep go on where it was stopped, ``digest`` one number for the bits of many results, ``peers`` the same
comparison for other libraries, ``page`` the report.

    python -m tests.accuracy                              # all sweeps; a second run goes on where the first stopped
    python -m tests.accuracy --page docs/accuracy.md      # the report
"""
