"""`cardiodit app`: generate hearts in the browser."""

import argparse

from cardiodit._util.terminal import say
from cardiodit.commands.subcommand import add_command
from cardiodit.errors import CardioDiTError


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "app",
        "Serve a web page on which anybody can generate hearts: model, diagnosis, ejection fraction, seed and steps. "
        'Needs `pip install "cardiodit[app]"`; two CPU cores are enough for the bundled model. The app takes no files, '
        "so no patient data can be uploaded to it.",
        "cardiodit app --models cardiodit-phantom my-model --port 7860",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="MODEL",
        default=["cardiodit-phantom"],
        help="models to choose from: pipeline folders, or names on the Hub (the bundled model)",
    )
    parser.add_argument(
        "--segmenter",
        metavar="NAME",
        help="labels hearts, as in `cardiodit evaluate`; default: the bundled one, for the bundled model only",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets other machines in (%(default)s)"
    )
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (%(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    if not 0 < arguments.port < 65536:
        raise CardioDiTError(f"--port {arguments.port} must be from 1 to 65535.")
    from cardiodit.app import make_server, serve

    server = make_server(arguments.models, arguments.segmenter)
    say(f"Open http://{arguments.host}:{arguments.port} in a browser. Ctrl-C stops the app.")
    serve(server, arguments.host, arguments.port)
