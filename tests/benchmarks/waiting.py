"""A process that says so and waits until its input ends."""

import sys

if __name__ == "__main__":
    print("waiting", flush=True)
    sys.stdin.read()
