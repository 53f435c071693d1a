"""Ask the server of ci/mutation.py to run the tests, and end as they end."""

import socket
import sys

try:
    with socket.socket(socket.AF_UNIX) as door:
        door.connect(sys.argv[1])
        answer = b"".join(iter(lambda: door.recv(65536), b""))
except OSError:
    answer = b""
answer = answer or b"\1no server"  # It was stopped: ci/mutation.py asks again.
sys.stdout.buffer.write(answer[1:])
sys.exit(answer[0])
