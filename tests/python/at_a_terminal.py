"""Runs `ARGUMENTS... python COUNTS` at a terminal of its own, its input elsewhere, presses Ctrl-C once and prints what came.

The command under it says how often it was told to stop.
"""

import os
import pty
import select
import sys
import time

COUNTS = """
import signal, time
told = 0
def tell(*_):
    global told
    told += 1
signal.signal(signal.SIGINT, tell)
print("armed", flush=True)
end = time.monotonic() + 2
while time.monotonic() < end:
    time.sleep(0.01)
print("told", told, "time" + "s" * (told != 1))
"""


def main():
    child, terminal = pty.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        command = [*sys.argv[1:], sys.executable, "-c", COUNTS]
        os.execv(command[0], command)
    came, pressed, end = b"", False, time.monotonic() + 60
    while time.monotonic() < end and select.select([terminal], [], [], 60)[0]:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # the last one at the terminal left
            break
        came += piece
        if not pressed and b"armed" in came:
            pressed = True
            os.write(terminal, b"\x03")
    sys.stdout.write(came.decode())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


sys.exit(main())
