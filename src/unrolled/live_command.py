"""`unrolled inspect RUN --live`: a session on the loopback address, until Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable

from .checkpoint import Run
from .live_server import LiveApp, LiveServer
from .live_session import LiveSession


def serve(run: Run, title: str, text: str, say: Callable[[str], None], *, seed: int = 0, port: int = 0) -> None:
    """Serve a session that has read `text`, and say where it is; KeyboardInterrupt ends it cleanly.

    Raises TokenizerError or ValueError for a text that can't be read, OSError for a port that is taken.
    """
    session = LiveSession(run.model, run.tokenizer, seed=seed)
    session.read(text)
    config = run.config
    shape = {"layers": config.layers, "hidden": config.hidden, "h_dim": config.h_dim}
    with LiveServer(LiveApp(session, run.tokenizer), title, shape, port=port) as server:
        say(f"live at {server.url}\nCtrl-C ends it.")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("\nended")
