"""JupyterHub's hub on PostgreSQL, with users who log in, start servers and stop them.

The hub has one session for its whole life. It counts its users when it starts and does
not end that transaction before the next request: it is idle in transaction, and that is
said. Nothing else is wrong with it.

    python tests/applications/jupyterhub_rig.py --venv /tmp/hub --make-venv

Another checkout of poolwatch: ``--poolwatch PATH``. Exits with 1 if what is expected
is not said, or something else is.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from typing import Any

from rig import LEAKS, Looks, Rig, options, report, rig, together, version
from serving import free_port

USERS = 8
LONG_AFTER_S = 30
TOKEN = "a" * 32

# No notebook servers and no proxy of node.js: they take no connections.
CONFIG = """
from jupyterhub.auth import DummyAuthenticator
from jupyterhub.proxy import Proxy
from jupyterhub.spawner import Spawner

class NoServer(Spawner):
    running = False

    async def start(self):
        self.running = True
        return "http://127.0.0.1:1"

    async def stop(self, now=False):
        self.running = False

    async def poll(self):
        return None if self.running else 0

class NoProxy(Proxy):
    should_start = False
    routes = {}

    async def add_route(self, routespec, target, data):
        route = {"routespec": routespec, "target": target, "data": data}
        self.routes[routespec] = route

    async def delete_route(self, routespec):
        self.routes.pop(routespec, None)

    async def get_all_routes(self):
        return self.routes

c.JupyterHub.spawner_class = NoServer
c.JupyterHub.proxy_class = NoProxy
c.JupyterHub.authenticator_class = DummyAuthenticator
c.Authenticator.any_allow_config = True
c.JupyterHub.services = [{"name": "rig", "api_token": TOKEN}]
c.JupyterHub.load_roles = [{"name": "rig", "services": ["rig"],
                            "scopes": ["admin:users", "admin:servers", "tokens"]}]
c.JupyterHub.hub_port = HUB
c.JupyterHub.bind_url = f"http://127.0.0.1:{PUBLIC}"
c.JupyterHub.db_url = DATABASE
c.Spawner.http_timeout = 1
"""


class Hub:
    """The REST interface of a hub."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/hub/api"

    def call(self, method: str, path: str) -> Any:
        request = urllib.request.Request(
            f"{self.url}/{path}",
            method=method,
            headers={"Authorization": f"token {TOKEN}"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def user(self, number: int) -> None:
        """One user: an account, a token, a server, and looks at all the others."""
        name = f"user-{number}"
        self.call("POST", f"users/{name}")
        self.call("POST", f"users/{name}/tokens")
        for _ in range(3):
            self.call("GET", "users")
            self.call("GET", f"users/{name}")
        with suppress(urllib.error.HTTPError):  # no server answers: the hub gives it up
            self.call("POST", f"users/{name}/server")


def load(made: Rig, hub: Hub) -> None:
    """A hub at rest for longer than ``long_after``, twice; users in between."""
    with made.watching():
        time.sleep(LONG_AFTER_S + 10)
        raised = together(USERS, hub.user)
        assert not any(raised), raised
        time.sleep(LONG_AFTER_S + 10)


def others(looks: Looks) -> set[str]:
    """What is said beside the idle transactions, and not of the same holds."""
    kinds = set()
    for _, process in looks.processes():
        by_kind = {found["kind"]: found for found in process["findings"]}
        idle = set(by_kind.pop("idle_in_transaction", {"holds": []})["holds"])
        said = by_kind.get("long_hold")
        if said and set(said["holds"]) <= idle:
            del by_kind["long_hold"]
        kinds |= set(by_kind)
    return kinds


def checks(made: Rig) -> dict[str, str | None]:
    """What is expected, and what is wrong with it."""
    looks = made.looks
    idle = any(looks.findings("idle_in_transaction"))
    return {
        "its idle transaction is said": None if idle else "it is not",
        "no leak": "; ".join(looks.leaks() + made.leaks_logged()) or None,
        "nothing else": ", ".join(others(looks) - set(LEAKS)) or None,
    }


def main() -> int:
    chosen = options(__doc__).parse_args()
    hub, public = free_port(), free_port()
    with rig(chosen, "jupyterhub", "psycopg2-binary") as made:
        config = made.home / "jupyterhub_config.py"
        names = {
            "HUB": hub,
            "PUBLIC": public,
            "TOKEN": TOKEN,
            "DATABASE": made.postgres.url(),
        }
        assigned = "".join(f"{name} = {value!r}\n" for name, value in names.items())
        config.write_text(assigned + CONFIG)
        made.start("jupyterhub", "--config", config)
        made.until_served(f"http://127.0.0.1:{hub}/hub/health")
        load(made, Hub(hub))
        return report(version(chosen, "jupyterhub"), made.looks, checks(made))


if __name__ == "__main__":
    sys.exit(main())
