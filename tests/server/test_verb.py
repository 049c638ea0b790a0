"""`rebus serve`: what the command line names and refuses; and copies of a server on Ray Serve."""

from __future__ import annotations

import socket
from pathlib import Path

import openai
import pytest
from rich.console import Console
from tests.serving import QUICK, ask

from rebus.apps import cli
from rebus.apps.server import loading
from rebus.apps.server.loading import Named, named
from rebus.apps.server.settings import ServerConfig
from rebus.apps.server.verb import KEYS, configured, listening
from rebus.errors import RebusError


def test_what_is_named():
    found = named(["seed:mini", "seed_x:mini=weights/x"], ["seed_x:mini+edit=adapters/edit"])
    assert found == [
        Named("seed:mini", "seed:mini"),
        Named("seed_x:mini", "seed_x:mini", "weights/x"),
        Named("seed_x:mini+edit", "seed_x:mini", "weights/x", "adapters/edit"),
    ]
    with pytest.raises(RebusError, match="named twice"):
        named(["seed:mini", "seed:mini"], [])
    for wrong in ("edit=folder", "seed:mini+edit", "lavit:mini+edit=folder", "seed:mini+=folder"):
        with pytest.raises(RebusError, match="is no adapter of the models seed:mini"):
            named(["seed:mini"], [wrong])


def test_keys_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(KEYS, "one, two,")
    (tmp_path / "keys").write_text("three\n\nfour\n")
    found = configured(ServerConfig(), "127.0.0.1", tmp_path / "keys")
    assert found.keys == ("one", "two", "three", "four") and found.hosts == ()
    monkeypatch.delenv(KEYS)
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(RebusError, match="holds no key"):
        configured(ServerConfig(), "127.0.0.1", tmp_path / "empty")
    with pytest.raises(RebusError, match="cannot be read"):
        configured(ServerConfig(), "127.0.0.1", tmp_path / "absent")


def test_without_a_key_this_machine_answers_to_its_own_names_only():
    assert configured(ServerConfig(), "127.0.0.1", None).hosts == ("localhost", "127.0.0.1", "[::1]")
    assert configured(ServerConfig(), "0.0.0.0", None).hosts == ()
    assert configured(ServerConfig(hosts=("here",)), "127.0.0.1", None).hosts == ("here",)


def test_bad_input_is_one_line(capsys, tmp_path):
    with listening("127.0.0.1", 0) as sock:
        taken = sock.getsockname()[1]
        for args, words in (
            (["serve", "nothing:tiny"], "no system"),
            (["serve", "seed:tiny", "--port", str(taken)], "Nothing can listen"),
            (["serve", "seed:tiny", "--adapters", "x"], "is no adapter"),
            (["serve", "seed:tiny", "--adapters", f"seed:tiny+a={tmp_path}"], "has no adapters"),
            (["serve", "seed:v2-8b"], "has no weights"),
        ):
            assert cli.main(args) == 2
            said = capsys.readouterr().err
            assert "error: " in said and words in said and "Traceback" not in said, said


def test_a_copy_on_ray_serve_answers_as_the_server_does():
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed")
    from rebus.apps.server.replicas import start, stop

    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    config = ServerConfig(**QUICK, keys=("a key",))
    start(named(["seed:tiny"], []), config, host="127.0.0.1", port=port, count=1, device="cpu", num_cpus=2)
    try:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="a key", max_retries=0, timeout=60)
        assert [model.id for model in client.models.list()] == ["seed:tiny"]
        asked = {"model": "seed:tiny", "messages": ask(), "seed": 1, "max_tokens": 8, "temperature": 0}
        said = [client.chat.completions.create(**asked).choices[0].message.content for _ in range(4)]
        stream = client.chat.completions.create(**asked, stream=True)
        assert len("".join(chunk.choices[0].delta.content or "" for chunk in stream)) == len(said[0])
        assert len(set(map(len, said))) == 1
        first = client.responses.create(model="seed:tiny", input="hi", max_output_tokens=3)
        with pytest.raises(openai.NotFoundError):  # copies share nothing, so they keep nothing
            client.responses.retrieve(first.id)
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="another").models.list()
    finally:
        stop()


def test_adapters_share_the_weights_of_their_base(monkeypatch):
    calls = []

    class Base:
        def with_adapter(self, folder):
            calls.append(folder)
            return folder

    base = Base()
    monkeypatch.setattr(loading, "load_system", lambda name, *args, **options: calls.append(name) or base)
    models = named(["seed_x:mini"], ["seed_x:mini+edit=adapters/edit"])
    found = loading.load_named(models, Console(), "cpu")
    assert found == {"seed_x:mini": base, "seed_x:mini+edit": Path("adapters/edit")}
    assert calls == ["seed_x:mini", Path("adapters/edit")]
