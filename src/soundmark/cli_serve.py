"""``soundmark serve``, and ``classify --server``: parse, call, print."""

from __future__ import annotations

import os
from typing import Any

import click

from soundmark import cli_options, config, errors
from soundmark.serve_config import ServeConfig


@click.command(short_help="Answer over HTTP.")
@cli_options.bundle
@cli_options.token
@click.option("--print-config", is_flag=True, help="Print all values as TOML and stop.")
@cli_options.config_options(ServeConfig)
def serve(model: str | None, token: str | None, print_config: bool, **fields: Any) -> None:
    """Answer over HTTP: POST a recording to /v1/classify; /docs shows the rest.

    Without a token it listens on this machine only. SIGHUP reads the model again, SIGTERM finishes what was accepted.
    """
    given = {key: value for key, value in fields.items() if value is not None}
    if "allow_hosts" in given:
        given["allow_hosts"] = [name for name in given["allow_hosts"].split(",") if name]
    merged = config.from_dict(given, ServeConfig, where="command line", text=True)
    if print_config:
        click.echo(config.to_toml(merged), nl=False)
        return
    from soundmark.server.serve import run

    def on_start(url: str, info: dict[str, object]) -> None:
        click.echo(f"listening on {url}, model {info['model']}; {url}/docs, Ctrl-C ends it", err=True)

    run(model, merged, token=token or None, on_start=on_start)


def classify_there(
    url: str, token: str | None, paths: tuple[str, ...], form: str, *, top_k: int, strict: bool
) -> int:
    """Show the rows of recordings that a service classifies, as ``classify`` does, and return the exit status."""
    from soundmark import batch, render
    from soundmark.client import Client

    found = batch.expand(paths)
    with Client(url, token=token or None) as client:
        labels = client.labels()
        rows = client.classify_many(found, top_k=top_k, strict=strict)
        names = [os.fspath(one.path) for one in found]
        failed = render.show_rows(rows, form, top_k=top_k, paths=names, labels=labels)
    return errors.EXIT_SOME_FAILED if failed else errors.EXIT_OK
