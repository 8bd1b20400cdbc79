"""`python leash.py PARENT COMMAND ...`: becomes the command, which the kernel kills when PARENT dies, however it dies.

A program of its own, started without site packages in about 15 ms: code between fork and exec is not safe in a
process with threads. Where there is no such service of the kernel (anything but Linux) the command lives on.
"""

import os
import signal
import sys

if __name__ == "__main__":
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform.startswith("linux"):
        import ctypes

        set_parent_death_signal = 1  # PR_SET_PDEATHSIG; an exec keeps it
        ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a parent that blocks signals does so for itself
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]} cannot be started: {error.strerror}.")
