"""Running a piece of work in a forked process, which costs milliseconds where importing torch costs seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent.parent


def fork(work: Callable[[], None]) -> int:
    """Start ``work`` in a child; 0 is its exit status if it returned, 1 if it raised.

    Returns:
        The process number.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def wait(child: int, seconds: float = 60) -> int:
    """The child's status as ``subprocess`` gives it: an exit code, or minus a signal. One that hangs is killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"the process was still there after {seconds} s")


def run_trials(module: str, *args: object, seconds: float = 600) -> dict[str, Any]:
    """Run ``python -m tests.reliability.<module>`` in a fresh process; it prints its result as JSON, last."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", f"tests.reliability.{module}", *map(str, args)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main(trials: Callable[..., dict[str, Any]]) -> None:
    """What a trial module does when it is run: arguments are numbers."""
    print(json.dumps(trials(*map(int, sys.argv[1:]))))
