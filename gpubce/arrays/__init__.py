"""WHOSE memory it is: one module for each array library.

Each module has the same functions (see :class:`gpubce.arrays.registry.Library`): ``buffer`` says where an array is and
what it holds, ``empty`` and ``from_numbers`` make arrays beside another, ``stream`` gives the queue its work goes to,
``on_stream`` makes new arrays belong to another queue, ``to_host`` copies to NumPy, ``result`` hands an array to the
user.
"""
