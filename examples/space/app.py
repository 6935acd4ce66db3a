"""The Space: the app of `cardiodit app` with the models that the variable CARDIODIT_MODELS lists."""

import os

from cardiodit.app import make_server, serve

if __name__ == "__main__":
    models = os.environ.get("CARDIODIT_MODELS", "cardiodit-phantom").split()
    serve(make_server(models), os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"), int(os.environ.get("PORT", "7860")))
