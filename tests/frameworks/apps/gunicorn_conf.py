"""What a preloaded application with an engine needs."""

preload_app = True


def post_fork(server, worker):
    from shop import engine

    engine.dispose(close=False)
