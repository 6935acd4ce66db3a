"""A Python whose processes start in milliseconds: copies of one process that has imported everything heavy.

`python()` returns the path of a command that takes `-c`, `-m` or a script with arguments, as the interpreter does.
It starts a real process with an environment, folder, streams, session and exit code of its own; only the imports are
done already. Tests of importing itself, and of memory, use `sys.executable`.

Where pytest distributes the tests (`-n 2`), one prepared Python serves all of its processes, and these are copies of it
too (`share()` and `conftest.pytest_xdist_setupnodes`).
"""

import contextlib
import fcntl
import functools
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import warnings
from multiprocessing import forkserver, resource_tracker, spawn
from pathlib import Path
from types import ModuleType
from typing import Any

HEAVY = ("accelerate.commands.launch", "torch.distributed.run", "scipy.stats", "cardiodit.evaluation", "cardiodit.cli")
STAGES = ("vqgan", "dit", "unet", "prdit", "tgca", "controlnet", "segmenter", "copy_detector")
PASSED_ON = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
SHARED = "TESTS_PREPARED_PYTHON"  # the variable that tells pytest's processes the path of the one that they share

# What is started: it hands over its open files, arguments and environment, passes signals on, and ends as its copy.
CLIENT = f"""#!{sys.executable} -IS
import json, os, signal, socket, sys, time
files = [int(name) for name in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + name)]
with socket.socket(socket.AF_UNIX) as server:
    for attempt in range(1200):  # the prepared Python may still be importing
        try:
            server.connect({{path!r}})
        except OSError:
            time.sleep(0.1)
        else:
            break
    else:
        sys.exit("the prepared Python did not start")
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    request = dict(arguments=sys.argv[1:], folder=os.getcwd(), environment=dict(os.environ), files=files)
    text = json.dumps(request | dict(ignores_interrupts=ignored)).encode()
    socket.send_fds(server, [len(text).to_bytes(8, "big")], files)
    server.sendall(text)
    process = int.from_bytes(server.recv(8), "big")
    for name in {PASSED_ON}:
        if signal.getsignal(getattr(signal, name)) != signal.SIG_IGN:
            signal.signal(getattr(signal, name), lambda number, _: os.kill(process, number))
    code = int.from_bytes(server.recv(8), "big", signed=True)
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@functools.cache
def python() -> str:
    """Return the path of the prepared Python, which is started at the first call unless it is shared.

    It is usable at once; a process that is started while it still imports waits for it.
    """
    if SHARED in os.environ:
        return os.environ[SHARED]
    if not hasattr(os, "pidfd_open"):  # not on Linux
        return sys.executable
    folder = Path(tempfile.mkdtemp(prefix="prepared-"))
    client = folder / "python"
    client.write_text(CLIENT.format(path=str(folder / "socket")))
    client.chmod(stat.S_IRWXU)
    # The server ends with this process, which holds the other end of its standard input. Its output is a pipe, as that
    # of most clients is: its copies could not seek there as in a file.
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    STARTED.append(subprocess.Popen([sys.executable, __file__, str(folder / "socket")], **pipes))
    return str(client)


STARTED: list[subprocess.Popen] = []


def share() -> None:
    """Start the prepared Python for all processes among which this one is about to distribute the tests, if it is."""
    if "-n" in sys.argv and "PYTEST_XDIST_WORKER" not in os.environ and SHARED not in os.environ:
        os.environ[SHARED] = python()


def start_forkserver() -> None:
    """Let the processes of `multiprocessing`'s fork server, too, be copies of the shared prepared Python."""
    if SHARED in os.environ and os.environ[SHARED] != sys.executable:
        resource_tracker.ensure_running()
        spawn.set_executable(os.environ[SHARED])
        forkserver.ensure_running()
        spawn.set_executable(sys.executable)


def serve(path: str) -> dict[str, Any]:
    """Copy this process for every client; return what a client asks for in its copy only."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(64)
        while True:
            ready, _, _ = select.select([listening, sys.stdin], [], [])
            if sys.stdin in ready:
                shutil.rmtree(Path(path).parent, ignore_errors=True)
                os._exit(0)
            connection, _ = listening.accept()
            if os.fork() == 0:
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return keep(connection)


def keep(connection: socket.socket) -> dict[str, Any]:
    """Start the copy, end it if its client is killed, and tell the client how it ended; return in the copy only."""
    length, received, _, _ = socket.recv_fds(connection, 8, 64)
    with connection.makefile("rb") as file:
        request = json.loads(file.read(int.from_bytes(length, "big")))
    process = os.fork()
    if process == 0:
        connection.close()
        os.setsid()
        high = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 1000) for file in received]  # none of their new numbers
        for file in received:
            os.close(file)
        for file, number in zip(high, request["files"]):
            os.dup2(file, number)
            os.close(file)
        return request
    for file in {0, 1, 2, *received}:
        os.close(file)
    connection.sendall(process.to_bytes(8, "big"))
    ended = os.pidfd_open(process)
    ready, _, _ = select.select([ended, connection], [], [])
    if ended not in ready:
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    with contextlib.suppress(OSError):
        connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(8, "big", signed=True))
    os._exit(0)


def become(request: dict[str, Any]) -> None:
    """Do what the client was asked to, as a new interpreter would."""
    before = dict(os.environ)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if any(before.get(name) != os.environ.get(name) for name in {*before, *os.environ} if name.startswith("HF_")):
        read_hub_settings_again()
    signal.signal(signal.SIGINT, signal.SIG_IGN if request["ignores_interrupts"] else signal.default_int_handler)
    sys.path[:0] = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    arguments = list(request["arguments"])
    sys.orig_argv = [sys.executable, *arguments]
    while arguments[0] in ("-W", "-u", "-B"):
        if arguments.pop(0) == "-W":
            warnings.simplefilter(arguments.pop(0))  # type: ignore[arg-type]
    if not os.environ.get("PYTHONSAFEPATH"):
        sys.path.insert(0, "" if arguments[0] in ("-c", "-m") else str(Path(arguments[0]).parent))
    if arguments[0] == "-c":
        code = arguments.pop(1)
        sys.argv = arguments
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(code, main.__dict__)
    elif arguments[0] == "-m":
        warnings.filterwarnings("ignore", "'.*' found in sys.modules", RuntimeWarning)  # as it was imported before
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def read_hub_settings_again() -> None:
    """Set the constants that huggingface_hub reads from the environment, also where they were imported by name."""
    from huggingface_hub import constants, hf_api

    old = {name: value for name, value in vars(constants).items() if name.startswith(("HF_", "HUGGINGFACE_"))}
    old |= {"ENDPOINT": constants.ENDPOINT}
    importlib.reload(constants)
    new = vars(constants)
    changed = {name for name, value in old.items() if new[name] != value}
    for module in list(sys.modules.values()):
        for name in changed & set(getattr(module, "__dict__", {})):
            setattr(module, name, new[name])
    hf_api.api.endpoint = constants.ENDPOINT  # of functions such as huggingface_hub.create_repo


def prepare() -> None:
    """Import the packages that take long."""
    warnings.simplefilter("ignore")
    for name in (*HEAVY, *(f"cardiodit.training.train_{stage}" for stage in STAGES)):
        importlib.import_module(name)
    import cardiodit

    for name in cardiodit.__all__:
        getattr(cardiodit, name)
    warnings.resetwarnings()


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, which a script has there
    prepare()
    become(serve(sys.argv[1]))
