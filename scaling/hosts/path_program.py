"""What is measured between two hosts: a program for each end, which imports nothing of ours.

    python path_program.py serve ADDRESS
    python path_program.py ask ADDRESS SECONDS

The first says READY and sends back what comes, on a connection that begins with an E; on one that begins with
a C it counts bytes until its peer has sent all, and sends their number. The second measures round trips of a
small message, then how many bytes go one way in so many seconds, and says both as JSON: `round_trips_us` in
ascending order, `gbit`.
"""

import json
import socket
import sys
import threading
import time

PORT = 7701
# As large as some rows of a small model.
_MESSAGE = bytes(2048)
_NUM_ROUND_TRIPS = 300
_CHUNK = 1 << 18
_TIMEOUT = 30.0


def serve(address: str) -> None:
    with socket.create_server((address, PORT)) as server:
        print("READY", flush=True)
        while True:
            threading.Thread(target=_answer, args=(server.accept()[0],), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        is_echo, num_bytes = connection.recv(1) == b"E", 0
        while data := connection.recv(_CHUNK):
            num_bytes += len(data)
            if is_echo:
                connection.sendall(data)
        if not is_echo:
            connection.sendall(num_bytes.to_bytes(8, "big"))


def ask(address: str, seconds: float) -> None:
    print(json.dumps({"round_trips_us": _round_trips(address), "gbit": _gbit(address, seconds)}))


def _round_trips(address: str) -> list[float]:
    with _connected(address, b"E") as connection:
        times = []
        for _ in range(_NUM_ROUND_TRIPS):
            started = time.perf_counter()
            connection.sendall(_MESSAGE)
            num_back = 0
            while num_back < len(_MESSAGE):
                num_back += len(connection.recv(_CHUNK))
            times.append(round((time.perf_counter() - started) * 1e6, 1))
    return sorted(times)


def _gbit(address: str, seconds: float) -> float:
    """From the first byte to the answer that the last one has come."""
    with _connected(address, b"C") as connection:
        started, num_sent, chunk = time.perf_counter(), 0, bytes(_CHUNK)
        while time.perf_counter() - started < seconds:
            num_sent += connection.send(chunk)
        connection.shutdown(socket.SHUT_WR)
        num_counted = int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "big")
        elapsed = time.perf_counter() - started
    assert num_counted == num_sent, (num_counted, num_sent)
    return round(8e-9 * num_sent / elapsed, 5)


def _connected(address: str, kind: bytes) -> socket.socket:
    connection = socket.create_connection((address, PORT), _TIMEOUT)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(kind)
    return connection


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        ask(sys.argv[2], float(sys.argv[3]))
