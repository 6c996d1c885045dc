import os
import signal
import subprocess
import sys
import threading

import pytest

from training.run.interruption import SIGNALS, Interruption


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted(number, caplog):
    before = signal.getsignal(number)
    with Interruption() as interruption:
        assert interruption.name is None
        os.kill(os.getpid(), number)
        assert interruption.name == signal.Signals(number).name
        os.kill(os.getpid(), signal.SIGTERM)  # process managers may repeat themselves
        assert interruption.name == signal.Signals(number).name
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_ends_the_process_at_once():
    script = (
        "import os, signal, time\n"
        "from training.run.interruption import Interruption\n"
        "with Interruption():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('goes on', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still there', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "goes on\n")


def test_in_another_thread_nothing_changes():
    before = [signal.getsignal(number) for number in SIGNALS]
    seen = []

    def inside():
        with Interruption():
            seen.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == before
