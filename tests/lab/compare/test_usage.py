"""What processes use, read of a real one."""

import os
import subprocess
import sys

from gateway.lab.compare import usage

_BUSY = "import time, sys\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\nsys.stdin.read()"


def test_all_processes_of_a_session_are_found_with_their_time_and_memory() -> None:
    command = ["sh", "-c", f'{sys.executable} -c "$0"; true', _BUSY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        found = usage.processes([process.pid])
        assert process.pid in found
        assert len(found) == 2
        assert usage.cpu_seconds(found) >= 0.19
        assert usage.memory(found) > 1 << 20
        process.stdin.close()
    assert usage.processes([process.pid]) == []
    assert os.getpid() in usage.processes([os.getsid(0)])
