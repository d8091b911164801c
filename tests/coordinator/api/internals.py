"""What an answer must never hold: where the server's code is, and on which machine."""

import re
import socket

INTERNALS = re.compile(rf"Traceback|\.py\b|/\w+/\w+|{re.escape(socket.gethostname())}")
